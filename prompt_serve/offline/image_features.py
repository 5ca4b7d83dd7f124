"""Encode a stream of images: decoded in threads ahead of the encoder, results in order."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np

from prompt_serve.engines.encoders import Encoders
from prompt_serve.errors import ImageInvalid, PromptServeError
from prompt_serve.images.image_source import ImageSource, file_or_rgb
from prompt_serve.preprocess import Preprocessing, pixels_from_bytes, to_pixels
from prompt_serve.sources.files import is_url, read_image_file
from prompt_serve.tasks.image_passes import ImagePasses
from prompt_serve.types import FloatArray, PixelArray

if TYPE_CHECKING:
    from PIL.Image import Image

Decoded = PixelArray | PromptServeError  # (S, S, 3)
Outcome = FloatArray | PromptServeError  # (V, E), a row for each pass
_BATCHES_AHEAD = 2
_BYTES_AHEAD = 256 * 2**20  # of image files that are not decoded yet


def encoded(
    images: Iterable[ImageSource | PromptServeError],
    encoders: Encoders,
    passes: ImagePasses,
    *,
    decode_threads: int,
) -> Iterator[list[Outcome]]:
    """Yield the features or the error of every image, in order, batch by batch.

    At most some batches of images are taken from the stream and not yet returned.

    Args:
        images: of any form; an error stands for an image that could not be read.
        encoders: of the bundle.
        passes: through the image encoder, of every image.
        decode_threads: number of images decoded at once.
    """
    size = encoders.batch_size
    with ThreadPoolExecutor(decode_threads, "decode") as pool:
        window: deque[Future[Decoded]] = deque()
        undecoded: deque[tuple[Future[Decoded], int]] = deque()
        try:
            for image in images:
                future = pool.submit(decode, image, encoders.preprocessing)
                window.append(future)
                undecoded.append((future, len(image) if isinstance(image, bytes) else 0))
                _wait_for_room(undecoded)
                if len(window) >= (1 + _BATCHES_AHEAD) * size:
                    yield _encode(
                        [window.popleft().result() for _ in range(size)], encoders, passes
                    )
            while window:
                some = [window.popleft().result() for _ in range(min(size, len(window)))]
                yield _encode(some, encoders, passes)
        finally:
            for future in window:
                future.cancel()


def _wait_for_room(undecoded: deque[tuple[Future[Decoded], int]]) -> None:
    """Wait until the image files that are not decoded yet are few, or are not large."""
    while undecoded and (
        undecoded[0][0].done() or sum(size for _, size in undecoded) > _BYTES_AHEAD
    ):
        future, _ = undecoded.popleft()
        wait([future])


def decode(image: ImageSource | PromptServeError, preprocessing: Preprocessing) -> Decoded:
    """Return the pixels (S, S, 3) of an image, or the reason why it has none."""
    if isinstance(image, PromptServeError):
        return image
    try:
        return _pixels(_content(image), preprocessing)
    except PromptServeError as error:
        return error
    except MemoryError:
        return ImageInvalid("The image does not fit into the memory.")


def _content(image: ImageSource) -> "bytes | Image":
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        return read_image_file(path) if is_url(path) else file_or_rgb(image)
    return file_or_rgb(image)


def _pixels(content: "bytes | Image", preprocessing: Preprocessing) -> PixelArray:
    if isinstance(content, bytes):
        return pixels_from_bytes(content, preprocessing)
    return to_pixels(content, preprocessing)


def _encode(decoded: list[Decoded], encoders: Encoders, passes: ImagePasses) -> list[Outcome]:
    readable = [pixels for pixels in decoded if isinstance(pixels, np.ndarray)]
    if not readable:
        return [error for error in decoded if isinstance(error, PromptServeError)]
    pixels = np.stack(readable)  # (B, S, S, 3)
    of_passes = [
        encoders.encode_pixels(pixels, () if rows is None else [rows] * len(pixels))
        for rows in passes.rows
    ]
    features = iter(np.stack(of_passes, axis=1))  # (B, V, E)
    return [one if isinstance(one, PromptServeError) else next(features) for one in decoded]
