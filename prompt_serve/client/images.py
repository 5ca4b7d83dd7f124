"""Read images of any form into the bytes of an image file, and pack them into requests.

Paths, bytes and open files are sent unchanged; URLs are sent for the service to fetch. Images in
memory (Pillow, numpy) are sent as PNG, which is lossless: the result is the same as for their file.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prompt_serve.errors import ImageInvalid, PromptServeError, RequestTooLarge
from prompt_serve.images.image_source import ImageSource, read_image, source_of

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
) -> Iterator[list[ImageFile] | UnreadableImage]:
    """Read images and group them into requests, holding the bytes of one request at a time.

    Args:
        images: images with their indices.
        max_images: maximum number of images per request.
        request_bytes: size at which a request is full; a larger image is sent alone.
        max_bytes: maximum size of a request; a larger image becomes an ``UnreadableImage``.
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
    # File names in other encodings contain surrogates, which cannot be sent.
    name = Path(source_of(image)).name.encode("utf-8", "replace").decode() or f"image-{index}"
    try:
        file = _image_file(index, name, image)
    except ImageInvalid as error:
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


def is_url(text: str) -> bool:
    """Return True if a string is an HTTP URL and not a file path."""
    return text.strip()[:8].lower().startswith(("http://", "https://"))
