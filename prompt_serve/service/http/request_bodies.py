"""The forms of a request that runs the model -> what it asks for.

multipart/form-data         parts ``image``, fields ``image_url``, ``task``, ``tag``, ``top_k``
application/json            ``ClassifyRequest``, ``EmbedRequest``, ``ScoreRequest``
image/*, octet-stream       one image file; the rest is in the query
application/x-npy,          preprocessed pixels, or embeddings for ``/v1/score``;
application/x-safetensors   the rest is in the query
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, QueryParams, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from prompt_serve.errors import RequestInvalid, RequestTooLarge
from prompt_serve.schemas import (
    DEFAULT_TOP_K,
    ClassifyRequest,
    EmbedRequest,
    Limits,
    ScoreRequest,
)
from prompt_serve.service.http.tensor_bodies import (
    TENSOR_TYPES,
    embeddings_of,
    embeddings_of_lists,
    pixels_of,
    read_tensor,
)
from prompt_serve.service.inference.requests import (
    EmbeddingItem,
    ImageItem,
    ImageUrl,
    TaskSelector,
    image_of_text,
)

_IMAGE_FIELDS = ("image", "image_url")
_TASK_FIELDS = ("task", "tag", "top_k")
_FINGERPRINT = "fingerprint"
_FURTHER_FIELDS = 8  # of a form, beside its tasks and images
_SHOWN_FAULTS = 5

Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True)
class ParsedRequest:
    """What is wanted of the images of a request."""

    selection: TaskSelector
    top_k: int


@dataclass(frozen=True)
class ParsedImageRequest:
    """A request to classify or embed."""

    images: Sequence[ImageItem]
    asked: ParsedRequest


@dataclass(frozen=True)
class ParsedEmbeddingRequest:
    """A request to score; ``fingerprint`` is of the backbone that made them, where it was told."""

    embeddings: Sequence[EmbeddingItem]
    asked: ParsedRequest
    fingerprint: str | None


class _InMemoryParser(MultiPartParser):
    """The body limit bounds what is held; spooling files to the disk would only add writes."""

    spool_max_size = 2**62


async def read_classify(request: Request, limits: Limits, image_size: int) -> ParsedImageRequest:
    """Read a request to classify, in any form.

    Raises:
        RequestInvalid: another content type, unknown fields, or a body that is not of its type.
        RequestTooLarge: more parts than the limits allow.
    """
    return await _read_images(request, limits, image_size, ClassifyRequest, _TASK_FIELDS)


async def read_embed(request: Request, limits: Limits, image_size: int) -> ParsedImageRequest:
    """Read a request to embed; as ``read_classify``, without tasks."""
    return await _read_images(request, limits, image_size, EmbedRequest, ())


async def read_score(request: Request, limits: Limits, width: int) -> ParsedEmbeddingRequest:
    """Read a request to score embeddings of ``width`` numbers: JSON, npy or safetensors."""
    kind = _content_type(request)
    query = request.query_params
    if kind == "application/json":
        _check_names(query.keys(), ())
        wanted = await _read_json(request, ScoreRequest)
        rows = await asyncio.to_thread(embeddings_of_lists, wanted.embeddings, width)
        asked = _asked_in_json(wanted)
        return ParsedEmbeddingRequest(
            [EmbeddingItem(row) for row in rows], asked, wanted.fingerprint
        )
    if kind in TENSOR_TYPES:
        _check_names(query.keys(), (*_TASK_FIELDS, _FINGERPRINT))
        tensor = await asyncio.to_thread(read_tensor, await request.body(), kind)
        rows = await asyncio.to_thread(embeddings_of, tensor.array, width)
        fingerprint = query.get(_FINGERPRINT) or tensor.metadata.get(_FINGERPRINT)
        return ParsedEmbeddingRequest(
            [EmbeddingItem(row) for row in rows], _asked_in_query(query), fingerprint
        )
    raise RequestInvalid(
        f"The content type is {kind[:100]!r}. Send application/json with 'embeddings' and 'tasks', "
        f"or one array as {' or '.join(TENSOR_TYPES)} with ?task=NAME."
    )


async def _read_images(
    request: Request,
    limits: Limits,
    image_size: int,
    schema: type[ClassifyRequest | EmbedRequest],
    fields: Sequence[str],
) -> ParsedImageRequest:
    kind = _content_type(request)
    query = request.query_params
    if kind == "multipart/form-data":
        return await _read_multipart(request, limits, fields)
    if kind == "application/json":
        _check_names(query.keys(), ())
        wanted = await _read_json(request, schema)
        images = await asyncio.to_thread(lambda: list(map(image_of_text, wanted.images)))
        return ParsedImageRequest(images, _asked_in_json(wanted))
    if kind in TENSOR_TYPES:
        _check_names(query.keys(), fields)
        tensor = await asyncio.to_thread(read_tensor, await request.body(), kind)
        pixels = await asyncio.to_thread(pixels_of, tensor.array, image_size)
        return ParsedImageRequest([ImageItem(image) for image in pixels], _asked_in_query(query))
    if kind.startswith("image/") or kind == "application/octet-stream":
        _check_names(query.keys(), fields)
        return ParsedImageRequest([ImageItem(await request.body())], _asked_in_query(query))
    where = " and ?task=NAME" if fields else ""
    raise RequestInvalid(
        f"The content type is {kind[:100]!r}. Send multipart/form-data with file parts named "
        f"'image'; application/json with 'images' in base64; one image as the body with its own "
        f"type (image/jpeg){where}; or preprocessed pixels as {' or '.join(TENSOR_TYPES)}{where}."
    )


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def _read_json(request: Request, schema: type[Message]) -> Message:
    body = await request.body()
    try:
        # Images in base64 are megabytes of JSON; the event loop has others to serve.
        return await asyncio.to_thread(schema.model_validate_json, body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        listed = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults]
        raise RequestInvalid(
            f"The JSON is not as it should be: {'; '.join(listed[:_SHOWN_FAULTS])}"
        ) from error


def _asked_in_json(wanted: ClassifyRequest | EmbedRequest | ScoreRequest) -> ParsedRequest:
    if isinstance(wanted, EmbedRequest):
        return ParsedRequest(TaskSelector(), DEFAULT_TOP_K)
    return ParsedRequest(TaskSelector(wanted.tasks, wanted.tags), wanted.top_k)


def _asked_in_query(query: QueryParams) -> ParsedRequest:
    selection = TaskSelector(query.getlist("task"), query.getlist("tag"))
    return ParsedRequest(selection, _top_k(query.get("top_k")))


async def _read_multipart(
    request: Request, limits: Limits, fields: Sequence[str]
) -> ParsedImageRequest:
    query = request.query_params
    _check_names(query.keys(), fields)
    form = await _parse(request, limits)
    try:
        _check_names(form.keys(), (*_IMAGE_FIELDS, *fields))
        names = [*_texts(form, "task"), *query.getlist("task")]
        tags = [*_texts(form, "tag"), *query.getlist("tag")]
        top_k = next(iter(_texts(form, "top_k")), query.get("top_k"))
        images = [
            await _image(name, part) for name, part in form.multi_items() if name in _IMAGE_FIELDS
        ]
        return ParsedImageRequest(images, ParsedRequest(TaskSelector(names, tags), _top_k(top_k)))
    finally:
        await form.close()


async def _parse(request: Request, limits: Limits) -> FormData:
    parser = _InMemoryParser(
        request.headers,
        request.stream(),
        max_files=limits.max_images,
        max_fields=limits.max_tasks + limits.max_images + _FURTHER_FIELDS,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise RequestTooLarge(
                f"The request has more than {limits.max_images} images. "
                f"Split it into several requests.",
                limit=limits.max_images,
            ) from error
        if error.message.startswith("Too many fields"):
            raise RequestTooLarge(
                f"The request has more than {limits.max_tasks} tasks. "
                f"Split it into several requests.",
                limit=limits.max_tasks,
            ) from error
        raise RequestInvalid(f"The multipart body cannot be read: {error.message}") from error
    # python-multipart raises errors of its own on bodies that are no multipart at all, and a
    # charset nobody knows is a LookupError.
    except (ValueError, KeyError, LookupError) as error:
        raise RequestInvalid(f"The multipart body cannot be read: {error}") from error


async def _image(name: str, part: UploadFile | str) -> ImageItem:
    if name == "image_url" and isinstance(part, str):
        return ImageItem(ImageUrl(part))
    if name == "image" and isinstance(part, UploadFile):
        return ImageItem(await part.read(), part.filename)
    if name == "image_url":
        raise RequestInvalid("A part 'image_url' is a file; it must be a plain field with a URL.")
    raise RequestInvalid(
        "A field 'image' is text. Send images as file parts, with a file name: "
        "curl -F image=@photo.jpg"
    )


def _texts(form: FormData, name: str) -> list[str]:
    values = form.getlist(name)
    if any(not isinstance(value, str) for value in values):
        raise RequestInvalid(f"{name!r} is a file; it must be a plain field.")
    return [value for value in values if isinstance(value, str)]


def _check_names(names: Iterable[str], known: Sequence[str]) -> None:
    strangers = sorted(set(names) - set(known))
    if strangers:
        raise RequestInvalid(
            f"Unknown field(s) {', '.join(map(repr, strangers[:10]))}; "
            f"known: {', '.join(known) or 'none'}."
        )


def _top_k(text: str | None) -> int:
    if text is None:
        return DEFAULT_TOP_K
    try:
        return int(text)
    except ValueError:
        raise RequestInvalid(f"top_k is {text[:50]!r}; wanted a whole number.") from None
