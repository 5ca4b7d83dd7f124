"""Views of images as pixels, for prompts of the image tower, which runs at every step.

A set that fits into memory is decoded once. A larger one (100 classes of 16 images of 224 pixels in
16 views take 3.9 GB) is decoded on demand: a view depends only on the image file, its index and the
seed, so the pixels are the same, nothing is written to disk, and memory holds one batch.
"""

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from prompt_serve.errors import DatasetInvalid
from prompt_serve.preprocess import Preprocessing, decode_image, pixels_from_bytes
from prompt_serve.training.data.augment import (
    CROPS,
    Augmentation,
    augmented_view,
    decoded_side,
    view_generator,
)
from prompt_serve.training.data.dataset import ImageSet
from prompt_serve.training.data.features import DECODE_CHUNK, decoded_views, file_digests
from prompt_serve.training.progress import Advance, no_advance
from prompt_serve.types import IntArray, PixelArray

MEMORY_BYTES = 2**30  # sets up to this size are kept in memory

Source = tuple[Path, str]  # image file and its sha256, in hexadecimal


class Pixels(Protocol):
    """Views that are indexed like an array (N, K, S, S, 3) of uint8."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K, S, S, 3)."""

    def __getitem__(self, index: tuple[IntArray, IntArray], /) -> PixelArray:
        """Return view ``index[1]`` (B,) of image ``index[0]`` (B,): (B, S, S, 3) uint8."""


@dataclass(frozen=True, kw_only=True)
class PixelSet:
    """Views of images with their labels; K = 1 for plain views."""

    pixels: Pixels
    labels: IntArray  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_views(self) -> int:
        return int(self.pixels.shape[1])

    def plain(self, first: int, count: int) -> PixelArray:
        """Return the first views (B, S, S, 3) of up to ``count`` images."""
        chosen = np.arange(first, min(first + count, len(self)))
        return self.pixels[chosen, np.zeros_like(chosen)]


class DecodedOnDemand:
    """Pixels that are decoded whenever they are indexed.

    Args:
        sources: N images.
        preprocessing: of the backbone.
        views: K augmented views per image; 0 for the plain view only.
        seed: random seed of the views.
        augmentation: kind of random crops.
        workers: threads that decode.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        preprocessing: Preprocessing,
        *,
        views: int,
        seed: int,
        augmentation: Augmentation = "crops",
        workers: int = 4,
    ) -> None:
        size = preprocessing.image_size
        self.shape = (len(sources), max(views, 1), size, size, 3)
        self._sources = sources
        self._preprocessing = preprocessing
        self._views = views
        self._seed = seed
        self._crop = CROPS[augmentation]
        self._decoded_side = decoded_side(preprocessing, views, augmentation)
        self._pool = ThreadPoolExecutor(workers)

    def __getitem__(self, index: tuple[IntArray, IntArray], /) -> PixelArray:
        images, views = (indices.tolist() for indices in index)
        return np.stack(list(self._pool.map(self._view, images, views)))

    def _view(self, image: int, view: int) -> PixelArray:
        path, digest = self._sources[image]
        data = _unchanged(path, digest)
        if not self._views:
            return pixels_from_bytes(data, self._preprocessing)
        picture = decode_image(data, min_side=self._decoded_side)
        return augmented_view(
            picture, self._preprocessing, view_generator(digest, view, self._seed), self._crop
        )


def image_pixels(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    views: int = 0,
    seed: int = 0,
    augmentation: Augmentation = "crops",
    workers: int = 4,
    advance: Advance = no_advance,
    memory_bytes: int = MEMORY_BYTES,
) -> PixelSet:
    """Return every image in ``views`` augmented views, or in the plain view where 0.

    Args:
        images: N readable images.
        preprocessing: of the backbone.
        views: K augmented views per image.
        seed: random seed of the views.
        augmentation: kind of random crops.
        workers: threads that decode images.
        advance: called with the number of images done, N in all.
        memory_bytes: larger sets are decoded on demand.

    Raises:
        DatasetInvalid: later, when an image is decoded on demand and its file has changed.
    """
    paths = [item.path for item in images.items]
    sources = list(zip(paths, file_digests(paths, workers=workers), strict=True))
    size = preprocessing.image_size
    shape = (len(paths), max(views, 1), size, size, 3)
    pixels: Pixels
    if math.prod(shape) > memory_bytes:
        pixels = DecodedOnDemand(
            sources,
            preprocessing,
            views=views,
            seed=seed,
            augmentation=augmentation,
            workers=workers,
        )
        advance(len(paths))
    else:
        pixels = np.empty(shape, dtype=np.uint8)
        _decode_into(pixels, sources, preprocessing, views, seed, augmentation, workers, advance)
    labels = np.asarray([item.label for item in images.items], dtype=np.int64)
    return PixelSet(pixels=pixels, labels=labels)


def _decode_into(
    pixels: PixelArray,
    sources: Sequence[Source],
    preprocessing: Preprocessing,
    views: int,
    seed: int,
    augmentation: Augmentation,
    workers: int,
    advance: Advance,
) -> None:
    per_chunk = max(1, DECODE_CHUNK // max(views, 1))
    chunks = [sources[start : start + per_chunk] for start in range(0, len(sources), per_chunk)]
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        decoded = decoded_views(pool, chunks, preprocessing, views, seed, augmentation)
        for chunk in decoded:  # (n, K, S, S, 3)
            pixels[done : done + len(chunk)] = chunk
            done += len(chunk)
            advance(len(chunk))


def _unchanged(path: Path, digest: str) -> bytes:
    """Return the bytes of an image whose digest was taken before.

    Raises:
        DatasetInvalid: the file is gone, or has changed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetInvalid(
            f"{path} could be read when training began, but not any more: {error.strerror}. "
            f"Leave the images in place until training has ended."
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise DatasetInvalid(
            f"{path} has changed since training began. "
            f"Leave the images unchanged until training has ended."
        )
    return data
