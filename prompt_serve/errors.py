"""Errors raised on purpose.

    PromptServeError
    ├── ConfigInvalid
    ├── DatasetInvalid
    ├── DatasetMissing
    ├── ResultsInvalid
    ├── DependencyMissing
    ├── DownloadFailed
    ├── HubFailed
    │   └── HubRefused
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
    │   ├── SignatureInvalid
    │   └── PromptTooLong
    ├── RequestError
    │   ├── RequestInvalid
    │   ├── RequestTooLarge
    │   ├── BodyTooSlow
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
    │   ├── NotAllowed
    │   └── OriginNotAllowed
    └── ServiceError
        ├── Overloaded
        ├── QuotaExceeded
        ├── NotReady
        ├── DatabaseUnsupported
        ├── RegistryDamaged
        ├── DeadlineExceeded
        ├── ServiceUnreachable
        └── ServiceFailed

An error keeps its facts as attributes (``TaskNotFound.name``). Its ``code`` is stable; the service
puts it into problem documents (RFC 9457) and answers with the HTTP ``status``.

An error that clients of the service can receive names the way out in its docstring, from which
``docs/reference.md`` is generated.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar


def counted(n: int, noun: str) -> str:
    """Return ``1 image``, ``1,200 images``, ``1 class`` or ``2 classes``, for messages."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


class PromptServeError(Exception):
    """An unexpected fault of the service.

    Base of all errors raised on purpose; `facts` become attributes.

    Way out: find `request_id` in the log of the service.
    """

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500
    # The caller has to ask otherwise: an option, a name, a setting or a file is wrong or missing.
    # Commands then exit with 2, and with 1 after other errors.
    misuse: ClassVar[bool] = False

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
    misuse = True


class DatasetInvalid(_Faulty):
    """The images cannot be learned from or evaluated on."""

    code = "dataset-invalid"
    misuse = True


class DatasetMissing(PromptServeError):
    """A known dataset is not on disk, or not as it was published."""

    code = "dataset-missing"
    misuse = True


class ResultsInvalid(PromptServeError):
    """The folder or file does not hold the results of a protocol."""

    code = "results-invalid"
    misuse = True


class DependencyMissing(PromptServeError):
    """An optional dependency is not installed."""

    code = "dependency-missing"


class DownloadFailed(PromptServeError):
    """A file could not be downloaded: there is no network, or the host did not send it."""

    code = "download-failed"


class HubFailed(PromptServeError):
    """The Hugging Face Hub cannot be reached, or failed."""

    code = "hub-failed"


class HubRefused(HubFailed):
    """The Hub has no such repository, revision or file, or the token does not allow this."""

    code = "hub-refused"
    misuse = True


class BackboneError(PromptServeError):
    """Base of the errors of loading a backbone."""

    code = "backbone-error"
    misuse = True


class BackboneUnavailable(BackboneError):
    """There is no such model, or its weights cannot be loaded."""

    code = "backbone-unavailable"


class BackboneUnsupported(BackboneError):
    """This CLIP has a tower that cannot be exported or prompted."""

    code = "backbone-unsupported"


class BundleInvalid(PromptServeError):
    """An exported backbone is missing, damaged or of another format."""

    code = "bundle-invalid"
    misuse = True


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
    misuse = True


class PromptFileInvalid(PromptError):
    """The prompt file is unreadable or inconsistent; all faults are listed.

    Way out: upload a file that `prompt-serve train` wrote.
    """

    code = "prompt-file-invalid"


class PromptUnsupported(PromptError):
    """The prompt has parts that the service does not run.

    Way out: use a text prompt; see "Supported prompts" on the tasks page.
    """

    code = "prompt-unsupported"


class BackboneMismatch(PromptError):
    """The prompt or the embeddings belong to another backbone.

    Way out: train or embed again on the backbone of this service.
    """

    code = "backbone-mismatch"


class ProbeMismatch(PromptError):
    """The class features computed here differ from those of the training run.

    Way out: train the prompt again on the backbone of this service.
    """

    code = "probe-mismatch"


class SignatureInvalid(PromptError):
    """The prompt file is not signed by a trusted key for this task; `expected` lists the keys.

    Way out: sign it with `prompt-serve sign`, or `train --sign`, and a key that the service trusts.
    """

    code = "signature-invalid"


class PromptTooLong(PromptError, _Faulty):
    """Class names or template exceed the context length of the text tower.

    Way out: shorten the class names that are listed.
    """

    code = "prompt-too-long"


class RequestError(PromptServeError):
    """The web framework rejected the request.

    Base of errors about a request.

    Way out: see `detail`.
    """

    code = "request-error"
    status = 400
    misuse = True


class RequestInvalid(RequestError):
    """No image, no task, an unknown field or an unsupported content type.

    Way out: see `detail`, which says what is expected.
    """

    code = "request-invalid"
    status = 422


class RequestTooLarge(RequestError):
    """The body, or the number of images, tasks, classes or scores exceeds a limit.

    Way out: split the request, or for more tasks, ask for NDJSON or `top_tasks`; `GET /v1/info`
    lists the limits.
    """

    code = "request-too-large"
    status = 413


class BodyTooSlow(RequestError):
    """The body arrived more slowly than `min_body_bytes_per_s`.

    Way out: send it again over a faster connection.
    """

    code = "body-too-slow"
    status = 408
    misuse = False


class ImageInvalid(RequestError):
    """The image is empty, damaged or of an unsupported format.

    Way out: send JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM.
    """

    code = "image-invalid"
    status = 422


class ImageTooLarge(RequestError):
    """The image declares more pixels than allowed; it was not decoded.

    Way out: resize the image.
    """

    code = "image-too-large"
    status = 413


class ImageUnreachable(RequestError):
    """The URL of an image did not return an image in time.

    Way out: send the image itself.
    """

    code = "image-unreachable"
    status = 422
    misuse = False


class UrlRefused(RequestError):
    """Fetching images is off, or the URL leads to an address that is not allowed.

    Way out: send the image itself.
    """

    code = "url-refused"
    status = 422


class TaskNameInvalid(RequestError):
    """The name is not 1 to 128 letters, digits, `.`, `_` or `-`, or two of these with `/` between.

    Way out: choose another name.
    """

    code = "task-name-invalid"
    status = 422


class TaskNotFound(RequestError):
    """No task has this name; `loaded` lists similar names.

    Way out: use one of these names, or upload the task.
    """

    code = "task-not-found"
    status = 404
    name: str
    loaded: tuple[str, ...]


class VersionNotFound(RequestError):
    """No version starts with these digits, or its file is no longer kept.

    Way out: `GET /v1/tasks/{name}/history` lists the versions.
    """

    code = "version-not-found"
    status = 404


class VersionAmbiguous(RequestError):
    """Several versions start with these digits.

    Way out: give more digits.
    """

    code = "version-ambiguous"
    status = 422


class VersionChanged(RequestError):
    """The task is not at the version that `If-Match` names.

    Way out: read the task again and repeat the change.
    """

    code = "version-changed"
    status = 412
    misuse = False
    expected: str
    current: str


class VersionInUse(RequestError):
    """A task points at the version to be deleted.

    Way out: delete the task or point it at another version first.
    """

    code = "version-in-use"
    status = 409
    misuse = False


class ArchiveInvalid(RequestError):
    """The zip file, or a file in it, is unreadable or unsafe.

    Way out: create it again with `prompt-serve registry export`.
    """

    code = "archive-invalid"
    status = 422


class NotAuthenticated(RequestError):
    """The key is missing, unknown, expired or revoked.

    Way out: send a valid key; `prompt-serve keys create` makes one.
    """

    code = "not-authenticated"
    status = 401
    misuse = False


class NotAllowed(RequestError):
    """The key does not allow the request: its actions lack `action`, or its tasks this one.

    Way out: use a key that may do this; `prompt-serve keys list` shows what each may do.
    """

    code = "not-allowed"
    status = 403
    misuse = False
    action: str  # the action needed


class OriginNotAllowed(RequestError):
    """A web page of another origin sent a request that is not a read; `header` says which.

    Way out: list the page's origin in `PROMPT_SERVE_CORS_ORIGINS`, or send a key as a bearer token.
    """

    code = "origin-not-allowed"
    status = 403
    misuse = False
    header: str
    value: str


class ServiceError(PromptServeError):
    """The encoder failed on this image.

    Base of errors of the service.

    Way out: find `request_id` in the log of the service.
    """

    code = "service-error"
    status = 500


class Overloaded(ServiceError):
    """The queue of images or of changes is full, or too many bytes are in flight.

    Way out: retry after `Retry-After` seconds.
    """

    code = "overloaded"
    status = 429
    retry_after_s: float


class QuotaExceeded(ServiceError):
    """The key has used up a quota; `quota` and `limit` say which.

    Way out: retry after `Retry-After` seconds, delete tasks, or ask for a larger quota.
    """

    code = "quota-exceeded"
    status = 429
    quota: str
    limit: float
    retry_after_s: float


class NotReady(ServiceError):
    """The service starts or stops, or its database is locked, full or unreachable.

    Way out: retry after `Retry-After` seconds; `/readyz` says what fails.
    """

    code = "not-ready"
    status = 503


class DatabaseUnsupported(ServiceError):
    """The database's tables belong to a newer version."""

    code = "database-unsupported"


class RegistryDamaged(ServiceError, _Faulty):
    """A registry, or a backup of one, has faults; all are listed."""

    code = "registry-damaged"


class DeadlineExceeded(ServiceError):
    """The deadline passed; images that were still waiting, or tasks not scored, were dropped.

    Way out: send fewer images, or allow more time.
    """

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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence, after a space, with the known names like ``name``; "" if there are none.

    Case does not count.
    """
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3)
    return f" Did you mean {' or '.join(repr(by_lower[one]) for one in close)}?" if close else ""


def _tree(root: type[PromptServeError]) -> list[type[PromptServeError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


ERRORS_BY_CODE: dict[str, type[PromptServeError]] = {
    kind.code: kind for kind in reversed(_tree(PromptServeError))
}
