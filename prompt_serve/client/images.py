"""Read images of any form into the bytes of an image file, and pack them into requests.

Paths, bytes and open files are sent unchanged; URLs are sent for the service to fetch. Images in
memory (Pillow, numpy) are sent as PNG, which is lossless: the result is the same as for their file.

With ``resize``, images are decoded and resized here, by the code of the service, and the square
that the image tower sees is sent as lossless WebP: 87 KB for a tower of 224 pixels, and the answer
is the same. Files that are small already are sent unchanged.
"""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard, Union, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError

from prompt_serve import __version__
from prompt_serve.errors import (
    ConfigInvalid,
    ImageInvalid,
    ImageTooLarge,
    PromptServeError,
    RequestTooLarge,
)
from prompt_serve.schemas import ServiceInfo

if TYPE_CHECKING:
    from PIL.Image import Image

    from prompt_serve.preprocess import Preprocessing

ImageSource: TypeAlias = Union[
    str,
    os.PathLike[str],
    BinaryIO,
    bytes,
    bytearray,
    memoryview,
    np.ndarray[Any, Any],
    "Image",  # Pillow's; imported only when needed
]
# Upper bound for the boundary, headers and quoting of one part of a multipart body.
PART_OVERHEAD_BYTES = 400


@dataclass(frozen=True)
class ImageFile:
    """One image ready to send; ``index`` is its index in the chunk it came from."""

    index: int
    name: str
    data: bytes
    is_url: bool = False  # ``data`` is a URL for the service to fetch

    @property
    def sent_bytes(self) -> int:
        """Size of its part in a request body, in bytes."""
        return len(self.data) + 3 * len(self.name.encode()) + PART_OVERHEAD_BYTES


@dataclass(frozen=True)
class UnreadableImage:
    """One image that cannot be sent, with the reason."""

    index: int
    name: str
    error: PromptServeError


def one_or_many(
    images: ImageSource | Iterable[ImageSource],
) -> tuple[bool, Iterable[ImageSource]]:
    """Return whether ``images`` is a single image, and the images as an iterable."""
    if isinstance(images, np.ndarray):
        one = images.ndim != 4
    else:
        single = (str, os.PathLike, bytes, bytearray, memoryview)
        one = isinstance(images, single) or hasattr(images, "read") or _is_pil_image(images)
    many = [images] if one else images
    return one, cast(Iterable[ImageSource], many)


def source_of(image: object) -> str:
    """Return the path of an image as the caller gave it; empty if it has none."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    name = getattr(image, "filename", None) or getattr(image, "name", None)
    return name if isinstance(name, str) else ""


def read_image(image: ImageSource) -> bytes:
    """Return the bytes of an image file.

    Arrays must be uint8 (H, W, 3), RGB; they and PIL images are encoded as PNG.

    Raises:
        ImageInvalid: unreadable, or not an image.
    """
    if isinstance(image, str | os.PathLike):
        return _read_path(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return _png_of_array(image)
    if hasattr(image, "read"):
        return _read_file(cast(BinaryIO, image))
    if _is_pil_image(image):
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
    resize: "Preprocessing | None" = None,
) -> Iterator[list[ImageFile] | UnreadableImage]:
    """Read images and group them into requests, holding the bytes of one request at a time.

    Args:
        images: images with their indices.
        max_images: maximum number of images per request.
        request_bytes: size at which a request is full; a larger image is sent alone.
        max_bytes: maximum size of a request; a larger image becomes an ``UnreadableImage``.
        resize: preprocessing of the service, if images are to be resized here.
    """
    batch: list[ImageFile] = []
    size = 0
    for index, image in images:
        file = _prepare(index, image, max_bytes, resize)
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


def _prepare(
    index: int, image: ImageSource, max_bytes: int, resize: "Preprocessing | None"
) -> ImageFile | UnreadableImage:
    # File names in other encodings contain surrogates, which cannot be sent.
    name = Path(source_of(image)).name.encode("utf-8", "replace").decode() or f"image-{index}"
    try:
        file = _image_file(index, name, image)
        if resize and not file.is_url:
            file = replace(file, data=resized(file.data, resize))
    except (ImageInvalid, ImageTooLarge) as error:
        return UnreadableImage(index, name, error)
    if file.sent_bytes > max_bytes:
        too_large = RequestTooLarge(
            f"The image has {len(file.data):,} bytes; this service accepts requests of at most "
            f"{max_bytes:,}. Scale it down: the model sees a few hundred pixels per side.",
            max_body_bytes=max_bytes,
        )
        return UnreadableImage(index, name, too_large)
    return file


def _image_file(index: int, name: str, image: ImageSource) -> ImageFile:
    if isinstance(image, str) and is_url(image):
        return ImageFile(index, name, image.strip().encode(), is_url=True)
    return ImageFile(index, name, read_image(image))


def preprocessing_of(service: ServiceInfo) -> "Preprocessing":
    """Return the preprocessing by which images are resized as the service would.

    Raises:
        ConfigInvalid: the service does not publish it, or is newer than this client.
    """
    from prompt_serve.preprocess import Preprocessing

    if service.resizing is not None:
        # Values of pixels are as in the file; the service normalizes them.
        fields = {"image_size": service.image_size, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        with contextlib.suppress(ValidationError):
            found: Preprocessing = TypeAdapter(Preprocessing).validate_python(
                {**fields, **service.resizing.model_dump()}
            )
            return found
    raise ConfigInvalid(
        f"The service (version {service.version}) and this client (version {__version__}) do not "
        f"resize images alike. Update the older one, or send images as they are: without "
        f"resize=True or --resize."
    )


def resized(data: bytes, preprocessing: "Preprocessing") -> bytes:
    """Return an image file of what the image tower sees of another, which is answered alike.

    Returns:
        The file itself if it is small: the square would seldom take fewer than S x S bytes.

    Raises:
        ImageTooLarge, ImageInvalid: it cannot be decoded here.
    """
    if len(data) <= preprocessing.image_size**2:
        return data
    from PIL import Image

    from prompt_serve.preprocess import pixels_from_bytes

    buffer = io.BytesIO()
    square = Image.fromarray(pixels_from_bytes(data, preprocessing))
    # Smaller than PNG, and faster: more effort saves a tenth and takes ten times as long.
    square.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return min(data, buffer.getvalue(), key=len)


def is_url(text: str) -> bool:
    """Return True if a string is an HTTP URL and not a file path."""
    return text.strip()[:8].lower().startswith(("http://", "https://"))


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
            f"The image file returned {type(data).__name__}, not bytes. Open it in binary mode: "
            f"open(path, 'rb')."
        )
    return data


def _is_pil_image(image: object) -> "TypeGuard[Image]":
    from PIL import Image  # imported late: not needed for paths and bytes

    return isinstance(image, Image.Image)


def _png_of_array(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageInvalid(
            f"The array is {array.dtype} {array.shape}; expected uint8 (H, W, 3), RGB. "
            f"For several images, give a list of such arrays or one array (N, H, W, 3)."
        )
    from PIL import Image

    return _png(Image.fromarray(array))


def _png(image: "Image") -> bytes:
    from prompt_serve.images.rgb_conversion import to_rgb

    buffer = io.BytesIO()
    try:
        # Converted as the service converts a file; PNG has neither CMYK nor Pillow's float mode.
        to_rgb(image).save(buffer, "PNG", compress_level=1)
    # Pillow decodes lazily, and its decoders raise exceptions of any type for damaged files.
    except Exception as error:
        raise ImageInvalid(f"The PIL image cannot be read: {error}") from error
    return buffer.getvalue()
