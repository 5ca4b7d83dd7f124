"""The two forms of a classify request: multipart/form-data, and an image as the body."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from prompt_serve.errors import RequestInvalid, RequestTooLarge
from prompt_serve.schemas import DEFAULT_TOP_K, Limits
from prompt_serve.service.core import ImageFile

_FIELDS = ("image", "task", "top_k")


@dataclass(frozen=True)
class ClassifyRequest:
    """What a classify request asks for, whatever its form."""

    images: Sequence[ImageFile]
    tasks: Sequence[str]
    top_k: int


class _InMemoryParser(MultiPartParser):
    """The body limit bounds what is held; spooling files to the disk would only add writes."""

    spool_max_size = 2**62


async def read_classify_request(request: Request, limits: Limits) -> ClassifyRequest:
    """Read the body, multipart or raw.

    Raises:
        RequestInvalid: another content type, unknown fields, or an image that is no file part.
        RequestTooLarge: more parts than the limits allow.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _read_multipart(request, limits)
    if content_type.startswith("image/") or content_type == "application/octet-stream":
        return await _read_raw(request)
    raise RequestInvalid(
        f"The content type is {content_type!r}. Send multipart/form-data with file parts named "
        f"'image' and fields named 'task', or one image as the body with its own type (image/jpeg) "
        f"and ?task=NAME."
    )


async def _read_raw(request: Request) -> ClassifyRequest:
    query = request.query_params
    _check_names(query.keys(), ("task", "top_k"))
    data = await request.body()
    return ClassifyRequest(
        images=[ImageFile(data)], tasks=query.getlist("task"), top_k=_top_k(query.get("top_k"))
    )


async def _read_multipart(request: Request, limits: Limits) -> ClassifyRequest:
    form = await _parse(request, limits)
    try:
        _check_names(form.keys(), _FIELDS)
        query = request.query_params
        _check_names(query.keys(), ("task", "top_k"))
        tasks = [*_texts(form, "task"), *query.getlist("task")]
        top_k = next(iter(_texts(form, "top_k")), query.get("top_k"))
        images = [await _image(part) for part in form.getlist("image")]
        return ClassifyRequest(images=images, tasks=tasks, top_k=_top_k(top_k))
    finally:
        await form.close()


async def _parse(request: Request, limits: Limits) -> FormData:
    parser = _InMemoryParser(
        request.headers,
        request.stream(),
        max_files=limits.max_images,
        max_fields=limits.max_tasks + 8,
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


async def _image(part: UploadFile | str) -> ImageFile:
    if isinstance(part, str):
        raise RequestInvalid(
            "A field 'image' is text. Send images as file parts, with a file name: "
            "curl -F image=@photo.jpg"
        )
    return ImageFile(await part.read(), part.filename)


def _texts(form: FormData, name: str) -> list[str]:
    values = form.getlist(name)
    if any(not isinstance(value, str) for value in values):
        raise RequestInvalid(f"{name!r} is a file; it must be a plain field.")
    return [value for value in values if isinstance(value, str)]


def _check_names(names: Iterable[str], known: Sequence[str]) -> None:
    strangers = sorted(set(names) - set(known))
    if strangers:
        raise RequestInvalid(
            f"Unknown field(s) {', '.join(map(repr, strangers[:10]))}; known: {', '.join(known)}."
        )


def _top_k(text: str | None) -> int:
    if text is None:
        return DEFAULT_TOP_K
    try:
        return int(text)
    except ValueError:
        raise RequestInvalid(f"top_k is {text[:50]!r}; wanted a whole number.") from None
