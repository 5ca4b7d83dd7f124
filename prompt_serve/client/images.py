"""Read images of any form into the bytes of an image file, and pack them into requests.

Paths, bytes and open files are sent unchanged; URLs are sent for the service to fetch. Images in
memory (Pillow, numpy) are sent as PNG, which is lossless: the result is the same as for their file.

With ``resize``, images are decoded and resized here, by the code of the service, and the square
that the image tower sees is sent as lossless WebP: 87 KB for a tower of 224 pixels, and the answer
is the same. Files that are small already are sent unchanged.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from prompt_serve import __version__
from prompt_serve.errors import (
    ConfigInvalid,
    ImageInvalid,
    ImageTooLarge,
    PromptServeError,
    RequestTooLarge,
)
from prompt_serve.images.image_source import ImageSource, read_image, source_of
from prompt_serve.schemas import ServiceInfo

if TYPE_CHECKING:
    from prompt_serve.preprocess import Preprocessing

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
