"""Errors raised on purpose.

    PromptServeError
    ├── ConfigInvalid
    ├── DatasetInvalid
    ├── DatasetMissing
    ├── ResultsInvalid
    ├── DependencyMissing
    ├── BackboneError
    │   ├── BackboneUnavailable
    │   └── BackboneUnsupported
    ├── BundleInvalid
    ├── ExportParityFailed
    ├── ProviderUnavailable
    ├── PromptError
    │   ├── PromptFileInvalid
    │   ├── PromptUnsupported
    │   ├── BackboneMismatch
    │   ├── ProbeMismatch
    │   └── PromptTooLong
    ├── RequestError
    │   ├── RequestInvalid
    │   ├── RequestTooLarge
    │   ├── ImageInvalid
    │   ├── ImageTooLarge
    │   ├── ImageUnreachable
    │   ├── UrlRefused
    │   ├── TaskNameInvalid
    │   ├── TaskNotFound
    │   ├── VersionNotFound
    │   ├── VersionAmbiguous
    │   ├── VersionChanged
    │   ├── VersionInUse
    │   ├── ArchiveInvalid
    │   ├── NotAuthenticated
    │   └── NotAllowed
    └── ServiceError
        ├── Overloaded
        ├── NotReady
        ├── DatabaseUnsupported
        ├── DeadlineExceeded
        ├── ServiceUnreachable
        └── ServiceFailed

An error keeps its facts as attributes (``TaskNotFound.name``). Its ``code`` is stable; the service
puts it into problem documents (RFC 9457) and answers with the HTTP ``status``.
"""

from collections.abc import Sequence
from typing import ClassVar


class PromptServeError(Exception):
    """Base of all errors raised on purpose; ``facts`` become attributes."""

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        self.__dict__.update(facts)


class _Faulty(PromptServeError):
    """Base of the errors that list every fault at once, so that one run shows all to fix."""

    faults: tuple[str, ...]

    def __init__(self, summary: str, faults: Sequence[str] = (), **facts: object) -> None:
        lines = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(summary + lines, **{**facts, "faults": tuple(faults)})


class ConfigInvalid(_Faulty):
    """A training or service setting is out of range."""

    code = "config-invalid"


class DatasetInvalid(_Faulty):
    """The images cannot be learned from or evaluated on."""

    code = "dataset-invalid"


class DatasetMissing(PromptServeError):
    """A known dataset is not on disk, or could not be fetched."""

    code = "dataset-missing"


class ResultsInvalid(PromptServeError):
    """The folder or file does not hold the results of a protocol."""

    code = "results-invalid"


class DependencyMissing(PromptServeError):
    """An optional dependency is not installed."""

    code = "dependency-missing"


class BackboneError(PromptServeError):
    """Base of the errors of loading a backbone."""

    code = "backbone-error"


class BackboneUnavailable(BackboneError):
    """The weights cannot be loaded or downloaded."""

    code = "backbone-unavailable"


class BackboneUnsupported(BackboneError):
    """This CLIP has a tower that cannot be exported or prompted."""

    code = "backbone-unsupported"


class BundleInvalid(PromptServeError):
    """An exported backbone is missing, damaged or of another format."""

    code = "bundle-invalid"


class ExportParityFailed(PromptServeError):
    """The exported graphs differ from the PyTorch model."""

    code = "export-parity-failed"


class ProviderUnavailable(PromptServeError):
    """The requested execution provider cannot run."""

    code = "provider-unavailable"


class PromptError(PromptServeError):
    """Base of the errors of prompts and their files."""

    code = "prompt-error"
    status = 422


class PromptFileInvalid(PromptError):
    """The file is not a readable, consistent prompt file."""

    code = "prompt-file-invalid"


class PromptUnsupported(PromptError):
    """The prompt is valid, but cannot be served."""

    code = "prompt-unsupported"


class BackboneMismatch(PromptError):
    """The prompt was learned on another backbone."""

    code = "backbone-mismatch"


class ProbeMismatch(PromptError):
    """The class features computed here differ from those the prompt was learned with."""

    code = "probe-mismatch"


class PromptTooLong(PromptError, _Faulty):
    """Template and class name exceed the context length."""

    code = "prompt-too-long"


class RequestError(PromptServeError):
    """Base of the errors that a request causes."""

    code = "request-error"
    status = 400


class RequestInvalid(RequestError):
    """The request is malformed, or its parameters are out of range."""

    code = "request-invalid"
    status = 422


class RequestTooLarge(RequestError):
    """The request exceeds a limit of the service."""

    code = "request-too-large"
    status = 413


class ImageInvalid(RequestError):
    """The bytes are not a readable image."""

    code = "image-invalid"
    status = 422


class ImageTooLarge(RequestError):
    """The image has more pixels than allowed."""

    code = "image-too-large"
    status = 413


class ImageUnreachable(RequestError):
    """The image could not be fetched from its URL."""

    code = "image-unreachable"
    status = 422


class UrlRefused(RequestError):
    """The service does not fetch images from this URL."""

    code = "url-refused"
    status = 422


class TaskNameInvalid(RequestError):
    """The name cannot be the name of a task."""

    code = "task-name-invalid"
    status = 422


class TaskNotFound(RequestError):
    """No task has this name."""

    code = "task-not-found"
    status = 404
    name: str
    loaded: tuple[str, ...]


class VersionNotFound(RequestError):
    """The task never had this version, or its file is no longer kept."""

    code = "version-not-found"
    status = 404


class VersionAmbiguous(RequestError):
    """Several versions start with these digits."""

    code = "version-ambiguous"
    status = 422


class VersionChanged(RequestError):
    """The task is not at the version that the request expects (If-Match)."""

    code = "version-changed"
    status = 412
    expected: str
    current: str


class VersionInUse(RequestError):
    """A task is at the version to be deleted."""

    code = "version-in-use"
    status = 409


class ArchiveInvalid(RequestError):
    """The upload is not a zip of prompt files, or not a safe one."""

    code = "archive-invalid"
    status = 422


class NotAuthenticated(RequestError):
    """The request has no key, or an invalid one."""

    code = "not-authenticated"
    status = 401


class NotAllowed(RequestError):
    """The key's role does not permit the request."""

    code = "not-allowed"
    status = 403
    role: str  # the role needed


class ServiceError(PromptServeError):
    """Base of the errors that the service causes, not the request."""

    code = "service-error"
    status = 500


class Overloaded(ServiceError):
    """The queue is full. Retry after ``retry_after_s`` seconds."""

    code = "overloaded"
    status = 429
    retry_after_s: float


class NotReady(ServiceError):
    """The service is starting, or unable to answer."""

    code = "not-ready"
    status = 503


class DatabaseUnsupported(ServiceError):
    """The database's tables belong to a newer version."""

    code = "database-unsupported"


class DeadlineExceeded(ServiceError):
    """The request was not answered within its timeout."""

    code = "deadline-exceeded"
    status = 504


class ServiceUnreachable(ServiceError):
    """The client could not connect to the service."""

    code = "service-unreachable"
    status = 503


class ServiceFailed(ServiceError):
    """The answer does not follow the protocol of the service."""

    code = "service-failed"
    status = 500


def _tree(root: type[PromptServeError]) -> list[type[PromptServeError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


ERRORS_BY_CODE: dict[str, type[PromptServeError]] = {
    kind.code: kind for kind in reversed(_tree(PromptServeError))
}
