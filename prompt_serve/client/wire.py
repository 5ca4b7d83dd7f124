"""The HTTP protocol without the network: what is sent, and what an answer means.

An answer becomes a message of ``schemas``, or the package's own exception with the facts that
the service put into its problem document.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from prompt_serve.client.images import ImageFile, UnreadableImage
from prompt_serve.client.retries import retry_after_s
from prompt_serve.errors import (
    ERRORS_BY_CODE,
    DeadlineExceeded,
    ImageInvalid,
    ImageTooLarge,
    ImageUnreachable,
    NotReady,
    Overloaded,
    PromptServeError,
    RequestTooLarge,
    ServiceFailed,
    UrlRefused,
)
from prompt_serve.schemas import (
    TIMEOUT_HEADER,
    ClassifyAnswer,
    EmbedAnswer,
    EmbeddedImage,
    ImageResult,
    Problem,
)

EXCERPT_CHARACTERS = 200
_RESERVED = {"args", "message", "facts"}  # what an exception already has
_CODES_OF_IMAGES = frozenset(
    kind.code for kind in (ImageInvalid, ImageTooLarge, ImageUnreachable, UrlRefused)
)
# What a proxy in front of the service means when it answers in the service's place.
_ERRORS_BY_STATUS: dict[int, type[PromptServeError]] = {
    413: RequestTooLarge,
    429: Overloaded,
    502: NotReady,
    503: NotReady,
    504: DeadlineExceeded,
}

Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True)
class Call:
    """One request; ``arguments`` are those of ``httpx.AsyncClient.request``."""

    method: str
    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def classify_call(
    files: Sequence[ImageFile],
    tasks: Sequence[str],
    tags: Sequence[str],
    top_k: int,
    deadline_s: float | None,
) -> Call:
    """``POST /v1/classify`` as multipart/form-data."""
    fields = {"task": list(tasks), "tag": list(tags), "top_k": str(top_k)}
    body = {"files": list(map(_part, files)), "data": fields}
    return Call("POST", "/v1/classify", body | _deadline(deadline_s))


def embed_call(files: Sequence[ImageFile], deadline_s: float | None) -> Call:
    """``POST /v1/embed`` as multipart/form-data, answered in JSON."""
    return Call("POST", "/v1/embed", {"files": list(map(_part, files))} | _deadline(deadline_s))


def score_call(
    rows: Sequence[Sequence[float]],
    tasks: Sequence[str],
    tags: Sequence[str],
    top_k: int,
    deadline_s: float | None,
    fingerprint: str | None,
) -> Call:
    """``POST /v1/score`` in JSON."""
    wanted = {
        "embeddings": [_plain(row) for row in rows],
        "tasks": list(tasks),
        "tags": list(tags),
        "top_k": top_k,
        "fingerprint": fingerprint,
    }
    return Call("POST", "/v1/score", {"json": wanted} | _deadline(deadline_s))


def _plain(row: Sequence[float]) -> list[float]:
    # JSON has no NaN. Zeros have no direction either, and are refused one by one.
    return list(row) if all(map(math.isfinite, row)) else [0.0] * len(row)


def _part(file: ImageFile) -> tuple[str, tuple[str | None, bytes, str] | tuple[None, bytes]]:
    if file.is_url:
        return "image_url", (None, file.data)
    return "image", (file.name, file.data, "application/octet-stream")


def _deadline(deadline_s: float | None) -> dict[str, dict[str, str]]:
    if deadline_s is None:
        return {}
    return {"headers": {TIMEOUT_HEADER: str(max(1, round(1000 * deadline_s)))}}


def read_answer(response: httpx.Response, message: type[Message]) -> Message:
    """The message in a response.

    Raises:
        PromptServeError: the kind that the problem document names.
        ServiceFailed: the answer is not part of the protocol.
    """
    check(response)
    try:
        # A newer service may tell more than we know of.
        return message.model_validate_json(response.content, extra="ignore")
    except ValidationError as error:
        raise _failed(response, "is not part of the protocol") from error


def check(response: httpx.Response) -> None:
    """Raise what a response that is no success says."""
    if not response.is_success:
        raise error_of(response)


def error_of(response: httpx.Response) -> PromptServeError:
    """The exception that an unsuccessful response stands for."""
    problem = _problem_in(response)
    if problem is not None and problem.code in ERRORS_BY_CODE:
        error = error_from(problem)
        _add_retry_after(error, response)
        return error
    kind = _ERRORS_BY_STATUS.get(response.status_code)
    if kind is None:
        return _failed(response, "is not part of the protocol; is this the URL of prompt-serve?")
    error = kind(_describe(response, "comes from something in front of the service"))
    _add_retry_after(error, response)
    return error


def error_from(problem: Problem) -> PromptServeError:
    """The package's own exception for a problem document, its facts as attributes."""
    kind = ERRORS_BY_CODE.get(problem.code, ServiceFailed)
    if kind is PromptServeError:  # internal-error: whatever the service did not foresee
        kind = ServiceFailed
    error = kind(problem.detail)
    _add_facts(error, problem.model_extra or {})
    return error


def problem_from(error: PromptServeError) -> Problem:
    """The problem document of an error that was found on this side."""
    phrase = next((s.phrase for s in HTTPStatus if s == error.status), "Error")
    return Problem(title=phrase, status=error.status, detail=error.message, code=error.code)


def results_of(
    response: httpx.Response, files: Sequence[ImageFile], n_tasks: int | None
) -> list[ImageResult]:
    """One result a file, in the order of ``files``, each with its file's index and name.

    A request whose images are all bad is answered as a problem whose ``errors`` tell them apart.
    """
    results = scores_of(response, len(files), n_tasks)
    return [
        result.model_copy(update={"index": file.index, "filename": file.name})
        for file, result in zip(files, results, strict=True)
    ]


def scores_of(response: httpx.Response, n_items: int, n_tasks: int | None) -> list[ImageResult]:
    """One result an image or embedding, in the order in which they were sent.

    Args:
        response: of the service.
        n_items: how many were sent.
        n_tasks: how many predictions each gets; None: the service alone knows.
    """
    errors = _errors_by_image(response, n_items)
    if errors is not None:
        results = [ImageResult(index=place, error=error) for place, error in errors.items()]
    else:
        results = read_answer(response, ClassifyAnswer).results
    by_place = {result.index: result for result in results}
    whole = all(_is_whole(result, n_tasks) for result in results)
    if len(results) != n_items or set(by_place) != set(range(n_items)) or not whole:
        raise _failed(response, f"does not answer {n_items} images and {n_tasks or 'its'} tasks")
    return [by_place[place] for place in range(n_items)]


def embeddings_of(
    response: httpx.Response, n_images: int
) -> tuple[list[EmbeddedImage], EmbedAnswer | None]:
    """One embedding or error an image, in their order; and the whole answer, if any is good."""
    errors = _errors_by_image(response, n_images)
    if errors is not None:
        answer = None
        results = [EmbeddedImage(index=place, error=error) for place, error in errors.items()]
    else:
        answer = read_answer(response, EmbedAnswer)
        results = answer.results
    by_place = {result.index: result for result in results}
    if len(results) != n_images or set(by_place) != set(range(n_images)):
        raise _failed(response, f"does not answer {n_images} images")
    return [by_place[place] for place in range(n_images)], answer


def only(results: Sequence[ImageResult]) -> ImageResult:
    """The one result there is; its error, where it has one, is raised."""
    [result] = results
    if result.error is not None:
        raise error_from(result.error)
    return result


def failed_result(image: ImageFile | UnreadableImage, error: PromptServeError) -> ImageResult:
    """The result of an image that was not answered."""
    return ImageResult(index=image.index, filename=image.name, error=problem_from(error))


def merged(parts: Sequence[ImageResult]) -> ImageResult:
    """One image's results for several groups of tasks as one; an error of any is its error."""
    for part in parts:
        if part.error is not None:
            return part
    predictions = [prediction for part in parts for prediction in part.predictions or []]
    return parts[0].model_copy(update={"predictions": predictions})


def _is_whole(result: ImageResult, n_tasks: int | None) -> bool:
    if result.error is not None:
        return True
    found = len(result.predictions or [])
    return found > 0 if n_tasks is None else found == n_tasks


def _errors_by_image(response: httpx.Response, n_items: int) -> dict[int, Problem] | None:
    problem = None if response.is_success else _problem_in(response)
    if problem is not None and n_items == 1 and problem.code in _CODES_OF_IMAGES:
        return {0: problem}  # a request of one image is refused with its own error
    listed = (problem.model_extra or {}).get("errors") if problem else None
    if not isinstance(listed, list) or not listed:
        return None
    try:
        return {
            int(entry["index"]): Problem.model_validate(_without_index(entry)) for entry in listed
        }
    except (ValidationError, KeyError, TypeError, ValueError):
        return None  # errors of another kind: of the form's fields, for example


def _without_index(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "index"}


def _problem_in(response: httpx.Response) -> Problem | None:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def _add_facts(error: PromptServeError, facts: Mapping[str, Any]) -> None:
    plain = {
        name: tuple(fact) if isinstance(fact, list) else fact
        for name, fact in facts.items()
        if name not in _RESERVED
    }
    error.facts = {**error.facts, **plain}
    error.__dict__.update(plain)


def _add_retry_after(error: PromptServeError, response: httpx.Response) -> None:
    wait_s = retry_after_s(response.headers)
    if wait_s is not None and "retry_after_s" not in error.facts:
        _add_facts(error, {"retry_after_s": wait_s})


def _failed(response: httpx.Response, what: str) -> ServiceFailed:
    return ServiceFailed(
        _describe(response, what),
        status=response.status_code,
        body=response.text[:EXCERPT_CHARACTERS],
        url=str(response.url),
    )


def _describe(response: httpx.Response, what: str) -> str:
    body = " ".join(response.text[:EXCERPT_CHARACTERS].split()) or "(empty)"
    return f"The answer of {response.url} ({response.status_code}) {what}: {body}"
