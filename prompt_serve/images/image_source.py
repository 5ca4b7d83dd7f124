"""Images as callers give them: paths, bytes, open files, Pillow images and arrays."""

import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard, Union, cast

import numpy as np

from prompt_serve.errors import ImageInvalid

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
    "Image",  # Pillow's; imported only when needed
]

MAX_IMAGE_BYTES = 512 * 2**20  # of a file; 50 megapixels of 64 bits have 400 MB
_PIECE_BYTES = 2**20


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
    found = file_or_rgb(image)
    if isinstance(found, bytes):
        return found
    buffer = io.BytesIO()
    found.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def file_or_rgb(image: ImageSource) -> "bytes | Image":
    """Return the bytes of an image file, or for an image in memory, its 8-bit RGB form.

    An image is converted as the file of it would be.

    Raises:
        ImageInvalid: unreadable, or not an image.
    """
    if isinstance(image, str | os.PathLike):
        return read_image_path(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return _rgb(_image_of_array(image))
    if hasattr(image, "read"):
        return _read_file(cast(BinaryIO, image))
    if _is_pil_image(image):
        return _rgb(image)
    raise ImageInvalid(
        f"{type(image).__name__!r} is not an image. Give a path, the bytes of an image file, a "
        f"file opened in binary mode, a PIL image or a uint8 array of shape (H, W, 3)."
    )


def read_image_path(path: Path) -> bytes:
    """Return the content of an image's file.

    A list or table may name anything: devices without end, and pipes that nobody writes to, are
    not read, except those that a shell made (``/dev/stdin``, ``/dev/fd/63``).

    Raises:
        ImageInvalid: it cannot be read, is no file or is too large.
    """
    try:
        status = path.stat()
        mode = status.st_mode
        of_shell = stat.S_ISFIFO(mode) and path.is_relative_to("/dev")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or of_shell):
            raise ImageInvalid(f"{path} cannot be read: it is a device or a pipe.")
        with path.open("rb") as file:
            return read_bounded(file, str(path), status.st_size)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageInvalid(f"{path} cannot be read: {reason}.") from error


def read_bounded(file: BinaryIO, name: str, size: int) -> bytes:
    """Return the content of an opened image file.

    Args:
        file: opened in binary mode.
        name: for errors.
        size: number of bytes; 0 if it is not known.

    Raises:
        ImageInvalid: it has more than ``MAX_IMAGE_BYTES``.
    """
    if size:
        if size > MAX_IMAGE_BYTES:
            raise too_many_bytes(name, size)
        return file.read(size)
    pieces, size = list[bytes](), 0  # of a pipe, or of a file that has no size, as in /proc
    while piece := file.read(_PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_IMAGE_BYTES:
            raise too_many_bytes(name, size)
    return b"".join(pieces)


def too_many_bytes(name: str, size: int) -> ImageInvalid:
    """Return the error of a file that is too large for an image."""
    return ImageInvalid(
        f"{name} has {size:,} bytes; an image file may have at most {MAX_IMAGE_BYTES:,}."
    )


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


def _image_of_array(array: np.ndarray[Any, Any]) -> "Image":
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageInvalid(
            f"The array is {array.dtype} {array.shape}; expected uint8 (H, W, 3), RGB. "
            f"For several images, give a list of such arrays or one array (N, H, W, 3)."
        )
    from PIL import Image

    return Image.fromarray(array)


def _rgb(image: "Image") -> "Image":
    from prompt_serve.images.rgb_conversion import to_rgb

    try:
        # Converted as a file is; PNG has neither CMYK nor Pillow's float mode.
        return to_rgb(image)
    # Pillow decodes lazily, and its decoders raise exceptions of any type for damaged files.
    except Exception as error:
        raise ImageInvalid(f"The PIL image cannot be read: {error}") from error
