"""Anything a caller calls an image -> the bytes of an image file, as they are sent.

Paths, bytes and open files are sent as they are, URLs for the service to fetch. Pictures in memory
(Pillow, numpy) are sent as PNG, which is lossless, so they get the answer their file would get.
"""

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard, Union, cast

import numpy as np

from prompt_serve.errors import ImageInvalid, PromptServeError, RequestTooLarge

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = Union[
    str,
    os.PathLike[str],
    BinaryIO,
    bytes,
    bytearray,
    memoryview,
    np.ndarray[Any, Any],
    "Image",  # of Pillow, which is imported when it is needed
]
# Boundary, headers and quoting of one part of a multipart body; generous.
PART_OVERHEAD_BYTES = 400


@dataclass(frozen=True)
class ImageFile:
    """One image ready to be sent: ``index`` is its place in the chunk it came from."""

    index: int
    name: str
    data: bytes
    is_url: bool = False  # ``data`` is a URL, which the service fetches

    @property
    def sent_bytes(self) -> int:
        """What it takes of a request's body."""
        return len(self.data) + 3 * len(self.name.encode()) + PART_OVERHEAD_BYTES


@dataclass(frozen=True)
class UnreadableImage:
    """One image that cannot be sent, and why."""

    index: int
    name: str
    error: PromptServeError


def one_or_many(
    images: ImageSource | Iterable[ImageSource],
) -> tuple[bool, Iterable[ImageSource]]:
    """Whether ``images`` is one image, and the images as something to iterate over."""
    if isinstance(images, np.ndarray):
        one = images.ndim != 4
    else:
        single = (str, os.PathLike, bytes, bytearray, memoryview)
        one = isinstance(images, single) or hasattr(images, "read") or _is_picture(images)
    many = [images] if one else images
    return one, cast(Iterable[ImageSource], many)


def source_of(image: object) -> str:
    """The path an image came from, as the caller gave it; empty where there is none."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    name = getattr(image, "filename", None) or getattr(image, "name", None)
    return name if isinstance(name, str) else ""


def read_image(image: ImageSource) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageInvalid: it cannot be read, or is nothing that we know as an image.
    """
    if isinstance(image, str | os.PathLike):
        return _read_path(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return _png_of_array(image)
    if hasattr(image, "read"):
        return _read_file(cast(BinaryIO, image))
    if _is_picture(image):
        return _png(image)
    raise ImageInvalid(
        f"{type(image).__name__!r} is not an image. Give a path, the bytes of an image file, a "
        f"file opened in binary mode, a PIL image or a uint8 array of shape (H, W, 3)."
    )


def pack(
    images: Iterable[tuple[int, ImageSource]],
    *,
    max_images: int,
    request_bytes: int,
    max_bytes: int,
) -> Iterator[list[ImageFile] | UnreadableImage]:
    """Read images and group them into requests; at most one request's bytes are held at a time.

    Args:
        images: each with the index that its ImageFile gets.
        max_images: of one request.
        request_bytes: where a request is full; a larger image goes alone.
        max_bytes: no request may be larger; an image that is becomes an ``UnreadableImage``.
    """
    batch: list[ImageFile] = []
    size = 0
    for index, image in images:
        file = _prepare(index, image, max_bytes)
        if isinstance(file, UnreadableImage):
            yield file
            continue
        if batch and (len(batch) >= max_images or size + file.sent_bytes > request_bytes):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.sent_bytes
    if batch:
        yield batch


def _prepare(index: int, image: ImageSource, max_bytes: int) -> ImageFile | UnreadableImage:
    # File names of other encodings hold surrogates, which cannot be sent.
    name = Path(source_of(image)).name.encode("utf-8", "replace").decode() or f"image-{index}"
    try:
        file = _image_file(index, name, image)
    except ImageInvalid as error:
        return UnreadableImage(index, name, error)
    if file.sent_bytes > max_bytes:
        too_large = RequestTooLarge(
            f"The image has {len(file.data):,} bytes; a request to this service has at most "
            f"{max_bytes:,}. Scale it down: the model sees a few hundred pixels a side.",
            max_body_bytes=max_bytes,
        )
        return UnreadableImage(index, name, too_large)
    return file


def _image_file(index: int, name: str, image: ImageSource) -> ImageFile:
    if isinstance(image, str) and is_url(image):
        return ImageFile(index, name, image.encode(), is_url=True)
    return ImageFile(index, name, read_image(image))


def is_url(text: str) -> bool:
    """Whether a string is where an image is in the web, and not the path of a file."""
    return text[:8].lower().startswith(("http://", "https://"))


def _read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageInvalid(f"{path} cannot be read: {reason}.") from error


def _read_file(file: BinaryIO) -> bytes:
    try:
        data = file.read()
    except (OSError, ValueError) as error:
        raise ImageInvalid(f"The image file cannot be read: {error}.") from error
    if not isinstance(data, bytes):
        raise ImageInvalid(
            f"The image file gave {type(data).__name__}, not bytes. Open it in binary mode: "
            f"open(path, 'rb')."
        )
    return data


def _is_picture(image: object) -> "TypeGuard[Image]":
    from PIL import Image  # not needed for paths and bytes, which are most calls

    return isinstance(image, Image.Image)


def _png_of_array(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageInvalid(
            f"The array is {array.dtype} {array.shape}; wanted uint8 (H, W, 3), RGB. "
            f"Several images are a list of such arrays, or one array (N, H, W, 3)."
        )
    from PIL import Image

    return _png(Image.fromarray(array))


def _png(image: "Image") -> bytes:
    from prompt_serve.preprocess import to_rgb

    buffer = io.BytesIO()
    try:
        # to_rgb here, as the service does to a file: PNG knows neither CMYK nor Pillow's floats.
        to_rgb(image).save(buffer, "PNG", compress_level=1)
    # Pillow decodes lazily, with decoders that raise whatever they stumble over in a damaged file.
    except Exception as error:
        raise ImageInvalid(f"The PIL image cannot be read: {error}") from error
    return buffer.getvalue()
