"""Every error that prompt-serve raises on purpose.

    PromptServeError
    ├── ConfigInvalid            a training or service setting is out of range
    ├── DatasetInvalid           the images to learn from cannot be used
    ├── DatasetMissing           a known dataset is not on disk, or could not be fetched
    ├── ResultsInvalid           not the results of a protocol
    ├── DependencyMissing        an optional part is not installed
    ├── BackboneError
    │   ├── BackboneUnavailable  the weights cannot be had
    │   └── BackboneUnsupported  this CLIP has a tower we cannot export or prompt
    ├── BundleInvalid            an exported backbone is missing, damaged or of another format
    ├── ExportParityFailed       the exported graphs differ from the PyTorch model
    ├── ProviderUnavailable      the execution provider asked for cannot run
    ├── PromptError
    │   ├── PromptFileInvalid    not a readable, consistent prompt file
    │   ├── PromptUnsupported    valid, but not servable (yet)
    │   ├── BackboneMismatch     learned on another backbone
    │   ├── ProbeMismatch        the class features come out differently here
    │   └── PromptTooLong        template + class name exceed the context length
    ├── RequestError
    │   ├── RequestInvalid
    │   ├── RequestTooLarge
    │   ├── ImageInvalid         not a readable image
    │   ├── ImageTooLarge        more pixels than allowed
    │   ├── ImageUnreachable     its URL gives no image
    │   ├── UrlRefused           an image's URL that is not fetched from
    │   ├── TaskNameInvalid
    │   ├── TaskNotFound
    │   ├── VersionNotFound      a task never had such a version, or it is kept no longer
    │   ├── VersionAmbiguous     several versions begin like this
    │   ├── VersionChanged       a task is not at the version that the request was made for
    │   ├── VersionInUse         a name points at the version to be deleted
    │   ├── ArchiveInvalid       not a zip of prompt files, or not a safe one
    │   ├── NotAuthenticated     no key, or one that is not valid
    │   └── NotAllowed           a valid key whose role is too small
    └── ServiceError
        ├── Overloaded           the queue is full; try again later
        ├── NotReady             starting, or unable to answer
        ├── DatabaseUnsupported  the tables are those of a newer version
        ├── DeadlineExceeded
        ├── ServiceUnreachable   no connection could be made (client side)
        └── ServiceFailed        an answer that is not part of the protocol

An error keeps its facts as attributes (``TaskNotFound.name``), has a stable ``code`` that the
service puts in its problem documents (RFC 9457), and the HTTP ``status`` it is answered with.
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
    """An error that lists every fault at once, so that one run shows all there is to mend."""

    faults: tuple[str, ...]

    def __init__(self, summary: str, faults: Sequence[str] = (), **facts: object) -> None:
        lines = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(summary + lines, **{**facts, "faults": tuple(faults)})


class ConfigInvalid(_Faulty):
    code = "config-invalid"


class DatasetInvalid(_Faulty):
    code = "dataset-invalid"


class DatasetMissing(PromptServeError):
    code = "dataset-missing"


class ResultsInvalid(PromptServeError):
    code = "results-invalid"


class DependencyMissing(PromptServeError):
    code = "dependency-missing"


class BackboneError(PromptServeError):
    code = "backbone-error"


class BackboneUnavailable(BackboneError):
    code = "backbone-unavailable"


class BackboneUnsupported(BackboneError):
    code = "backbone-unsupported"


class BundleInvalid(PromptServeError):
    code = "bundle-invalid"


class ExportParityFailed(PromptServeError):
    code = "export-parity-failed"


class ProviderUnavailable(PromptServeError):
    code = "provider-unavailable"


class PromptError(PromptServeError):
    code = "prompt-error"
    status = 422


class PromptFileInvalid(PromptError):
    code = "prompt-file-invalid"


class PromptUnsupported(PromptError):
    code = "prompt-unsupported"


class BackboneMismatch(PromptError):
    code = "backbone-mismatch"


class ProbeMismatch(PromptError):
    code = "probe-mismatch"


class PromptTooLong(PromptError, _Faulty):
    code = "prompt-too-long"


class RequestError(PromptServeError):
    code = "request-error"
    status = 400


class RequestInvalid(RequestError):
    code = "request-invalid"
    status = 422


class RequestTooLarge(RequestError):
    code = "request-too-large"
    status = 413


class ImageInvalid(RequestError):
    code = "image-invalid"
    status = 422


class ImageTooLarge(RequestError):
    code = "image-too-large"
    status = 413


class ImageUnreachable(RequestError):
    code = "image-unreachable"
    status = 422


class UrlRefused(RequestError):
    code = "url-refused"
    status = 422


class TaskNameInvalid(RequestError):
    code = "task-name-invalid"
    status = 422


class TaskNotFound(RequestError):
    code = "task-not-found"
    status = 404
    name: str
    loaded: tuple[str, ...]


class VersionNotFound(RequestError):
    code = "version-not-found"
    status = 404


class VersionAmbiguous(RequestError):
    code = "version-ambiguous"
    status = 422


class VersionChanged(RequestError):
    code = "version-changed"
    status = 412
    expected: str
    current: str


class VersionInUse(RequestError):
    code = "version-in-use"
    status = 409


class ArchiveInvalid(RequestError):
    code = "archive-invalid"
    status = 422


class NotAuthenticated(RequestError):
    code = "not-authenticated"
    status = 401


class NotAllowed(RequestError):
    code = "not-allowed"
    status = 403
    role: str  # that is needed


class ServiceError(PromptServeError):
    code = "service-error"
    status = 500


class Overloaded(ServiceError):
    code = "overloaded"
    status = 429
    retry_after_s: float


class NotReady(ServiceError):
    code = "not-ready"
    status = 503


class DatabaseUnsupported(ServiceError):
    code = "database-unsupported"


class DeadlineExceeded(ServiceError):
    code = "deadline-exceeded"
    status = 504


class ServiceUnreachable(ServiceError):
    code = "service-unreachable"
    status = 503


class ServiceFailed(ServiceError):
    code = "service-failed"
    status = 500


def _tree(root: type[PromptServeError]) -> list[type[PromptServeError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


ERRORS_BY_CODE: dict[str, type[PromptServeError]] = {
    kind.code: kind for kind in reversed(_tree(PromptServeError))
}
