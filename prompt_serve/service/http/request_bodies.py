"""Parse the bodies of the routes that run the model.

multipart/form-data         parts ``image``, fields ``image_url``, ``task``, ``tag``, ``top_k``,
                            ``top_tasks``
application/json            ``ClassifyRequest``, ``EmbedRequest``, ``ScoreRequest``
image/*, octet-stream       one image file
application/x-npy,          preprocessed pixels, or embeddings for ``/v1/score``
application/x-safetensors

Tasks, tags, top_k and top_tasks may be query parameters with every form. Tasks and tags of the
query are added to those of the body; of other values, the body's count.
"""

import asyncio
import codecs
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from prompt_serve.errors import RequestInvalid, RequestTooLarge, counted
from prompt_serve.schemas import (
    DEFAULT_TOP_K,
    ClassifyRequest,
    EmbedRequest,
    Limits,
    ScoreRequest,
)
from prompt_serve.service.http.dependencies import content_type
from prompt_serve.service.http.tensor_bodies import (
    TENSOR_TYPES,
    embeddings_from_array,
    embeddings_from_lists,
    pixels_from_array,
    read_tensor,
)
from prompt_serve.service.inference.requests import (
    EmbeddingItem,
    ImageItem,
    ImageUrl,
    TaskQuery,
    TaskSelector,
    image_from_text,
)
from prompt_serve.service.inference.task_scorer import check_count

_IMAGE_FIELDS = ("image", "image_url")
_TASK_FIELDS = ("task", "tag", "top_k", "top_tasks")
_FINGERPRINT = "fingerprint"
_OTHER_FIELDS = 8  # fields of a form besides its tasks and images
_SHOWN_ERRORS = 5
_SPARE = 1_000  # values of a JSON body besides its embeddings and tasks
_CODECS = ("utf-8", "ascii", "iso8859-1")
_SLICE_BYTES = 16 * 2**10
_PARSED_IN_LOOP_BYTES = 16 * 2**10  # in less time than a thread takes to wake up

Message = TypeVar("Message", bound=BaseModel)
_T = TypeVar("_T")
_Default = TypeVar("_Default", int, None)


@dataclass(frozen=True)
class ParsedImageRequest:
    """Request to classify or embed images."""

    images: Sequence[ImageItem]
    query: TaskQuery


@dataclass(frozen=True)
class ParsedEmbeddingRequest:
    """Request to score embeddings; ``fingerprint`` names their backbone, None if not given."""

    embeddings: Sequence[EmbeddingItem]
    query: TaskQuery
    fingerprint: str | None


class _InMemoryParser(MultiPartParser):
    """Parser that keeps files in memory: the body limit bounds them."""

    spool_max_size = 2**62


def _check_codec(request: Request) -> None:
    """Raise RequestInvalid if a form names a codec other than those of the web: some decoders of
    Python's take time that grows with the square of the text."""
    _, options = parse_options_header(request.headers["content-type"])
    named = options.get(b"charset", b"utf-8").decode("latin-1")
    try:
        known = codecs.lookup(named).name in _CODECS
    except (LookupError, ValueError):
        known = False
    if not known:
        raise RequestInvalid(
            f"The charset of the form is {named[:50]!r}; expected utf-8, ascii or latin-1."
        )


async def _in_slices(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield a body in slices that are parsed in a few milliseconds; other requests have their turn
    in between."""
    async for chunk in stream:
        for start in range(0, len(chunk), _SLICE_BYTES):
            yield chunk[start : start + _SLICE_BYTES]
            await asyncio.sleep(0)


async def _parsed(size: int, parse: Callable[..., _T], *args: object) -> _T:
    """Parse a body of so many bytes: a large one (images in base64 are megabytes) in a thread."""
    if size <= _PARSED_IN_LOOP_BYTES:
        return parse(*args)
    return await asyncio.to_thread(parse, *args)


async def read_classify(request: Request, limits: Limits, image_size: int) -> ParsedImageRequest:
    """Parse a request to classify, in any form.

    Raises:
        RequestInvalid: unknown content type, unknown fields, or a malformed body.
        RequestTooLarge: more parts than the limits allow.
    """
    return await _read_images(request, limits, image_size, ClassifyRequest, _TASK_FIELDS)


async def read_embed(request: Request, limits: Limits, image_size: int) -> ParsedImageRequest:
    """Parse a request to embed: like ``read_classify``, with one task or none.

    Raises:
        RequestInvalid, RequestTooLarge: as ``read_classify``; or several tasks.
    """
    parsed = await _read_images(request, limits, image_size, EmbedRequest, ("task",))
    names = set(parsed.query.selector.names)
    if len(names) > 1:
        raise RequestInvalid(
            f"The request names {len(names)} tasks; expected one, whose vectors of the image tower "
            f"change the embeddings, or none. Send one request for each."
        )
    return parsed


async def read_score(request: Request, limits: Limits, width: int) -> ParsedEmbeddingRequest:
    """Parse a request to score embeddings of ``width`` numbers: JSON, npy or safetensors."""
    kind = content_type(request)
    parameters = request.query_params
    if kind == "application/json":
        _check_names(parameters.keys(), (*_TASK_FIELDS, _FINGERPRINT))
        _check_numbers(await request.body(), limits, width)
        message = await _read_json(request, ScoreRequest)
        size = len(await request.body())
        rows = await _parsed(size, embeddings_from_lists, message.embeddings, width)
        fingerprint = message.fingerprint or parameters.get(_FINGERPRINT)
        query = _query_from_json(message, parameters)
    elif kind in TENSOR_TYPES:
        _check_names(parameters.keys(), (*_TASK_FIELDS, _FINGERPRINT))
        body = await request.body()
        tensor = await _parsed(len(body), read_tensor, body, kind)
        rows = await _parsed(len(body), embeddings_from_array, tensor.array, width)
        fingerprint = parameters.get(_FINGERPRINT) or tensor.metadata.get(_FINGERPRINT)
        query = _query_from_parameters(parameters)
    else:
        raise RequestInvalid(
            f"The content type is {kind[:100]!r}. Send application/json with 'embeddings' and "
            f"'tasks', or one array as {' or '.join(TENSOR_TYPES)} with ?task=NAME."
        )
    return ParsedEmbeddingRequest([EmbeddingItem(row) for row in rows], query, fingerprint)


def _check_numbers(body: bytes, limits: Limits, width: int) -> None:
    """Raise RequestTooLarge for JSON of more numbers than embeddings have, before it is parsed."""
    embeddings = limits.max_embeddings or 0
    most = embeddings * (width + 1) + (limits.max_streamed_tasks or limits.max_tasks) + _SPARE
    count = body.count(b",")
    if count > most:
        raise RequestTooLarge(
            f"The JSON body has about {count:,} values; {counted(embeddings, 'embedding')} of "
            f"{width} numbers and the tasks are fewer than {most:,}. Split the request.",
            limit=most,
            count=count,
        )


async def _read_images(
    request: Request,
    limits: Limits,
    image_size: int,
    schema: type[ClassifyRequest | EmbedRequest],
    fields: Sequence[str],
) -> ParsedImageRequest:
    kind = content_type(request)
    parameters = request.query_params
    if kind == "multipart/form-data":
        return await _read_multipart(request, limits, fields)
    if kind == "application/json":
        _check_names(parameters.keys(), fields)
        message = await _read_json(request, schema)
        check_count("images", len(message.images), limits.max_images)
        size = len(await request.body())
        images = await _parsed(size, lambda: list(map(image_from_text, message.images)))
        return ParsedImageRequest(images, _query_from_json(message, parameters))
    if kind in TENSOR_TYPES:
        _check_names(parameters.keys(), fields)
        body = await request.body()
        tensor = await _parsed(len(body), read_tensor, body, kind)
        pixels = await _parsed(len(body), pixels_from_array, tensor.array, image_size)
        images = [ImageItem(image) for image in pixels]
        return ParsedImageRequest(images, _query_from_parameters(parameters))
    if kind.startswith("image/") or kind == "application/octet-stream":
        _check_names(parameters.keys(), fields)
        images = [ImageItem(await request.body())]
        return ParsedImageRequest(images, _query_from_parameters(parameters))
    tasks = " and ?task=NAME" if fields else ""
    raise RequestInvalid(
        f"The content type is {kind[:100]!r}. Send multipart/form-data with file parts named "
        f"'image'; application/json with 'images' in base64; one image as the body with its own "
        f"content type (image/jpeg){tasks}; or preprocessed pixels as "
        f"{' or '.join(TENSOR_TYPES)}{tasks}."
    )


async def _read_json(request: Request, schema: type[Message]) -> Message:
    body = await request.body()
    try:
        return await _parsed(len(body), schema.model_validate_json, body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        places = [".".join(map(str, one["loc"])) for one in details]
        listed = [
            f"{place}: {one['msg']}" if place else one["msg"]
            for place, one in zip(places, details, strict=True)
        ]
        raise RequestInvalid(
            f"The JSON body is invalid: {'; '.join(listed[:_SHOWN_ERRORS])}"
        ) from error


def _query_from_json(
    message: ClassifyRequest | EmbedRequest | ScoreRequest, parameters: QueryParams
) -> TaskQuery:
    query = _query_from_parameters(parameters)
    if isinstance(message, EmbedRequest):
        own = [] if message.task is None else [message.task]
        return TaskQuery(TaskSelector([*own, *query.selector.names]))
    selector = TaskSelector(
        [*message.tasks, *query.selector.names], [*message.tags, *query.selector.tags]
    )
    given = message.model_fields_set
    return TaskQuery(
        selector,
        message.top_k if "top_k" in given else query.top_k,
        message.top_tasks if "top_tasks" in given else query.top_tasks,
    )


def _query_from_parameters(parameters: QueryParams) -> TaskQuery:
    selector = TaskSelector(parameters.getlist("task"), parameters.getlist("tag"))
    return TaskQuery(
        selector,
        _parse_count("top_k", parameters.get("top_k"), DEFAULT_TOP_K),
        _parse_count("top_tasks", parameters.get("top_tasks"), None),
    )


async def _read_multipart(
    request: Request, limits: Limits, fields: Sequence[str]
) -> ParsedImageRequest:
    parameters = request.query_params
    _check_names(parameters.keys(), fields)
    form = await _parse_form(request, limits)
    try:
        _check_names(form.keys(), (*_IMAGE_FIELDS, *fields))
        names = [*_texts(form, "task"), *parameters.getlist("task")]
        tags = [*_texts(form, "tag"), *parameters.getlist("tag")]
        top_k, top_tasks = (
            next(iter(_texts(form, name)), parameters.get(name)) for name in ("top_k", "top_tasks")
        )
        images = [
            await _image(name, part) for name, part in form.multi_items() if name in _IMAGE_FIELDS
        ]
        query = TaskQuery(
            TaskSelector(names, tags),
            _parse_count("top_k", top_k, DEFAULT_TOP_K),
            _parse_count("top_tasks", top_tasks, None),
        )
        return ParsedImageRequest(images, query)
    finally:
        await form.close()


async def _parse_form(request: Request, limits: Limits) -> FormData:
    max_names = limits.max_streamed_tasks or limits.max_tasks
    _check_codec(request)
    parser = _InMemoryParser(
        request.headers,
        _in_slices(request.stream()),
        max_files=limits.max_images,
        max_fields=max_names + limits.max_images + _OTHER_FIELDS,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise RequestTooLarge(
                f"The request has more than {counted(limits.max_images, 'image')}. "
                f"Split it into several requests.",
                limit=limits.max_images,
            ) from error
        if error.message.startswith("Too many fields"):
            raise RequestTooLarge(
                f"The request has more than {counted(max_names, 'task')}. "
                f"Split it into several requests.",
                limit=max_names,
            ) from error
        raise RequestInvalid(f"The multipart body cannot be read: {error.message}") from error
    # python-multipart raises its own errors for bodies that are not multipart at all, and a
    # LookupError for an unknown charset.
    except (ValueError, KeyError, LookupError) as error:
        raise RequestInvalid(f"The multipart body cannot be read: {error}") from error


async def _image(name: str, part: UploadFile | str) -> ImageItem:
    if name == "image_url" and isinstance(part, str):
        return ImageItem(ImageUrl(part))
    if name == "image" and isinstance(part, UploadFile):
        return ImageItem(await part.read(), part.filename)
    if name == "image_url":
        raise RequestInvalid("A part 'image_url' is a file; expected a plain field with a URL.")
    raise RequestInvalid(
        "A field 'image' is text; expected a file part with a file name: curl -F image=@photo.jpg"
    )


def _texts(form: FormData, name: str) -> list[str]:
    values = form.getlist(name)
    if any(not isinstance(value, str) for value in values):
        raise RequestInvalid(f"{name!r} is a file; expected a plain field.")
    return [value for value in values if isinstance(value, str)]


def _check_names(names: Iterable[str], known: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise RequestInvalid(
            f"Unknown {'field' if len(unknown) == 1 else 'fields'} "
            f"{', '.join(map(repr, unknown[:10]))}; known: {', '.join(known) or 'none'}."
        )


def _parse_count(name: str, text: str | None, default: _Default) -> int | _Default:
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise RequestInvalid(f"{name} is {text[:50]!r}; expected a whole number.") from None
