"""HTTP requests and responses of the service's API, without the network.

Builds the request of each call, and turns a response into a message of ``schemas`` or into the
package's own exception, with the facts of the service's problem document as attributes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from prompt_serve.client.classify_options import ClassifyOptions
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
    counted,
)
from prompt_serve.schemas import (
    TIMEOUT_HEADER,
    ClassifyAnswer,
    EmbedAnswer,
    EmbeddedImage,
    ImageLine,
    ImageResult,
    LastLine,
    Problem,
    TaskPrediction,
)

EXCERPT_CHARACTERS = 200
NDJSON = "application/x-ndjson"
PROXY_EXTENSION = "prompt_serve_proxy"  # of a response: the proxy it came through, or None
_RESERVED = {"args", "message", "facts"}  # attributes that every exception already has
_IMAGE_ERROR_CODES = frozenset(
    kind.code for kind in (ImageInvalid, ImageTooLarge, ImageUnreachable, UrlRefused)
)
# Statuses that a proxy in front of the service sends in its place.
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
    """One HTTP request; ``arguments`` are keyword arguments of ``httpx.AsyncClient.request``."""

    method: str
    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def classify_call(
    files: Sequence[ImageFile], options: ClassifyOptions, *, streamed: bool = False
) -> Call:
    """Build ``POST /v1/classify`` as multipart/form-data.

    Args:
        files: images.
        options: tasks, classes per task and time limit.
        streamed: ask for NDJSON.
    """
    fields: dict[str, Any] = {
        "task": list(options.tasks),
        "tag": list(options.tags),
        "top_k": str(options.top_k),
    }
    if options.top_tasks is not None:
        fields["top_tasks"] = str(options.top_tasks)
    body = {"files": list(map(_part, files)), "data": fields}
    return Call("POST", "/v1/classify", body | _headers(options.deadline_s, streamed))


def embed_call(
    files: Sequence[ImageFile], deadline_s: float | None, task: str | None = None
) -> Call:
    """Build ``POST /v1/embed`` as multipart/form-data; the response is JSON."""
    fields = {} if task is None else {"data": {"task": task}}
    arguments = {"files": list(map(_part, files))} | fields | _headers(deadline_s)
    return Call("POST", "/v1/embed", arguments)


def score_call(
    rows: Sequence[Sequence[float]],
    options: ClassifyOptions,
    fingerprint: str | None,
    *,
    streamed: bool = False,
) -> Call:
    """Build ``POST /v1/score`` in JSON.

    Args:
        rows: (N, E) embeddings. Rows with NaN or infinity are sent as zeros, which the service
            rejects one by one.
        options: tasks, classes per task and time limit.
        fingerprint: fingerprint of the backbone that made the embeddings, if known.
        streamed: ask for NDJSON.
    """
    body = {
        "embeddings": [_finite_or_zeros(row) for row in rows],
        "tasks": list(options.tasks),
        "tags": list(options.tags),
        "top_k": options.top_k,
        "fingerprint": fingerprint,
    }
    if options.top_tasks is not None:
        body["top_tasks"] = options.top_tasks
    return Call("POST", "/v1/score", {"json": body} | _headers(options.deadline_s, streamed))


def _finite_or_zeros(row: Sequence[float]) -> list[float]:
    # JSON has no NaN. A zero vector has no direction either, so the service rejects it.
    return list(row) if all(map(math.isfinite, row)) else [0.0] * len(row)


def _part(file: ImageFile) -> tuple[str, tuple[str | None, bytes, str] | tuple[None, bytes]]:
    if file.is_url:
        return "image_url", (None, file.data)
    return "image", (file.name, file.data, "application/octet-stream")


def _headers(deadline_s: float | None, streamed: bool = False) -> dict[str, dict[str, str]]:
    headers = {"Accept": NDJSON} if streamed else {}
    if deadline_s is not None:
        headers[TIMEOUT_HEADER] = str(max(1, round(1000 * deadline_s)))
    return {"headers": headers} if headers else {}


class _LastLine(LastLine):
    """Last line of any service; a newer one may send more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def unwrap_lines(response: httpx.Response) -> httpx.Response:
    """Return the response that an answer in NDJSON stands for once its last line is known: itself
    if it is complete, or the problem that ended it; other responses as they are.

    Raises:
        httpx.RemoteProtocolError: the last line is missing.
    """
    if not _has_lines(response):
        return response
    try:
        text = response.content.rstrip().rpartition(b"\n")[2]
        last = _LastLine.model_validate_json(text)
    except ValidationError:
        raise httpx.RemoteProtocolError(
            "the answer is incomplete: its last line is missing", request=response.request
        ) from None
    if last.problem is None:
        return response
    wait_s = (last.problem.model_extra or {}).get("retry_after_s")
    return httpx.Response(
        last.problem.status,
        headers=None if wait_s is None else {"Retry-After": str(wait_s)},
        content=last.problem.model_dump_json().encode(),
        request=response.request,
    )


def read_answer(response: httpx.Response, message: type[Message]) -> Message:
    """Parse the body of a successful response.

    Raises:
        PromptServeError: the response is an error; its type follows the problem's ``code``.
        ServiceFailed: the body is not a ``message``.
    """
    raise_for_error(response)
    try:
        # Ignore unknown fields: a newer service may send more.
        return message.model_validate_json(response.content, extra="ignore")
    except ValidationError as error:
        raise _service_failed(response, "is not part of the protocol") from error


def raise_for_error(response: httpx.Response) -> None:
    """Raise the exception of an unsuccessful response."""
    if not response.is_success:
        raise error_from_response(response)


def error_from_response(response: httpx.Response) -> PromptServeError:
    """Return the exception that an unsuccessful response stands for."""
    problem = _read_problem(response)
    if problem is not None and problem.code in ERRORS_BY_CODE:
        error = error_from_problem(problem)
        _add_retry_after(error, response)
        return error
    kind = _ERRORS_BY_STATUS.get(response.status_code)
    if kind is None:
        return _service_failed(
            response, "is not part of the protocol; is this the URL of prompt-serve?"
        )
    error = kind(_describe(response, "comes from a proxy in front of the service"))
    _add_retry_after(error, response)
    return error


def error_from_problem(problem: Problem) -> PromptServeError:
    """Return the package's own exception for a problem document, its facts as attributes."""
    kind = ERRORS_BY_CODE.get(problem.code, ServiceFailed)
    if kind is PromptServeError:  # internal-error: a fault of the service itself
        kind = ServiceFailed
    error = kind(problem.detail)
    _add_facts(error, problem.model_extra or {})
    return error


def read_image_results(
    response: httpx.Response, files: Sequence[ImageFile], n_tasks: int | None
) -> list[ImageResult]:
    """Return one result per file, in the order of ``files``, with the file's index and name.

    A request whose images are all invalid gets a problem document that lists their ``errors``.
    """
    results = read_results(response, len(files), n_tasks)
    return [
        result.model_copy(update={"index": file.index, "filename": file.name})
        for file, result in zip(files, results, strict=True)
    ]


def read_results(response: httpx.Response, n_items: int, n_tasks: int | None) -> list[ImageResult]:
    """Return one result per image or embedding, in the order in which they were sent.

    Args:
        response: response of the service.
        n_items: number of images or embeddings sent.
        n_tasks: number of predictions expected for each; None if only the service knows it.

    Raises:
        PromptServeError: the request failed as a whole.
        ServiceFailed: results are missing, or results have missing predictions.
    """
    errors = _errors_by_index(response, n_items)
    if errors is not None:
        results = [ImageResult(index=index, error=error) for index, error in errors.items()]
    elif _has_lines(response):
        results = _read_lines(response)
    else:
        results = read_answer(response, ClassifyAnswer).results
    by_index = {result.index: result for result in results}
    complete = all(_is_complete(result, n_tasks) for result in results)
    if len(results) != n_items or set(by_index) != set(range(n_items)) or not complete:
        tasks = "all tasks" if n_tasks is None else counted(n_tasks, "task")
        raise _service_failed(response, f"does not cover {counted(n_items, 'image')} and {tasks}")
    return [by_index[index] for index in range(n_items)]


def _has_lines(response: httpx.Response) -> bool:
    return response.is_success and response.headers.get("content-type", "").startswith(NDJSON)


def _read_lines(response: httpx.Response) -> list[ImageResult]:
    """Collect the lines of each image, without the last line."""
    predictions: dict[int, list[TaskPrediction]] = {}
    failed: list[ImageResult] = []
    try:
        for text in response.content.splitlines()[:-1]:
            line = ImageLine.model_validate_json(text, extra="ignore")
            if line.prediction is not None:
                predictions.setdefault(line.index, []).append(line.prediction)
            else:
                failed.append(ImageResult(index=line.index, error=line.error))
    except ValidationError as error:
        raise _service_failed(response, "is not part of the protocol") from error
    return [*failed, *(ImageResult(index=i, predictions=p) for i, p in predictions.items())]


def read_embeddings(
    response: httpx.Response, n_images: int
) -> tuple[list[EmbeddedImage], EmbedAnswer | None]:
    """Return one embedding or error per image, in order, and the answer they came in.

    The answer is None if no image could be embedded.

    Raises:
        PromptServeError: the request failed as a whole.
        ServiceFailed: embeddings are missing.
    """
    errors = _errors_by_index(response, n_images)
    if errors is not None:
        answer = None
        results = [EmbeddedImage(index=index, error=error) for index, error in errors.items()]
    else:
        answer = read_answer(response, EmbedAnswer)
        results = answer.results
    by_index = {result.index: result for result in results}
    if len(results) != n_images or set(by_index) != set(range(n_images)):
        raise _service_failed(response, f"does not cover {counted(n_images, 'image')}")
    return [by_index[index] for index in range(n_images)], answer


def single_result(results: Sequence[ImageResult]) -> ImageResult:
    """Return the only result; raise its error if it has one."""
    [result] = results
    if result.error is not None:
        raise error_from_problem(result.error)
    return result


def failed_result(image: ImageFile | UnreadableImage, error: PromptServeError) -> ImageResult:
    """Return the result of an image that got no prediction."""
    return ImageResult(index=image.index, filename=image.name, error=Problem.of(error))


def merge_results(parts: Sequence[ImageResult]) -> ImageResult:
    """Merge one image's results for several groups of tasks; the first error wins."""
    for part in parts:
        if part.error is not None:
            return part
    predictions = [prediction for part in parts for prediction in part.predictions or []]
    return parts[0].model_copy(update={"predictions": predictions})


def _is_complete(result: ImageResult, n_tasks: int | None) -> bool:
    if result.error is not None:
        return True
    found = len(result.predictions or [])
    return found > 0 if n_tasks is None else found == n_tasks


def _errors_by_index(response: httpx.Response, n_items: int) -> dict[int, Problem] | None:
    problem = None if response.is_success else _read_problem(response)
    if problem is not None and n_items == 1 and problem.code in _IMAGE_ERROR_CODES:
        return {0: problem}  # a request of one image fails with the error of that image
    listed = (problem.model_extra or {}).get("errors") if problem else None
    if not isinstance(listed, list) or not listed:
        return None
    try:
        return {
            int(entry["index"]): Problem.model_validate(_without_index(entry)) for entry in listed
        }
    except (ValidationError, KeyError, TypeError, ValueError):
        return None  # errors of another kind, for example of form fields


def _without_index(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "index"}


def _read_problem(response: httpx.Response) -> Problem | None:
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


def _service_failed(response: httpx.Response, fault: str) -> ServiceFailed:
    return ServiceFailed(
        _describe(response, fault),
        status=response.status_code,
        body=response.text[:EXCERPT_CHARACTERS],
        url=str(response.url),
    )


def _describe(response: httpx.Response, fault: str) -> str:
    body = " ".join(response.text[:EXCERPT_CHARACTERS].split()) or "(empty)"
    proxy = through(response.extensions.get(PROXY_EXTENSION))
    return f"The response of {response.url}{proxy} ({response.status_code}) {fault}: {body}"


def through(proxy: str | None) -> str:
    """Return the words that name a proxy behind an address; none without a proxy."""
    return f" through the proxy {proxy}" if proxy else ""
