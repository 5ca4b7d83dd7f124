"""Decoded views of images, for prompts that the image tower has to see anew at every step."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from prompt_serve.preprocess import Preprocessing
from prompt_serve.training.data import ImageSet
from prompt_serve.training.features import DECODE_CHUNK, decoded_views, file_digests
from prompt_serve.training.progress import Advance, no_advance
from prompt_serve.types import IntArray, PixelArray


@dataclass(frozen=True, kw_only=True)
class PixelSet:
    """Views of images with their labels."""

    pixels: PixelArray  # (N, K, S, S, 3) uint8, may be memory-mapped; K = 1 for plain views
    labels: IntArray  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_views(self) -> int:
        return int(self.pixels.shape[1])


def image_pixels(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    views: int = 0,
    seed: int = 0,
    workers: int = 4,
    advance: Advance = no_advance,
) -> PixelSet:
    """Decode every image in ``views`` augmented views, or in the one plain view where 0."""
    paths = [item.path for item in images.items]
    sources = list(zip(paths, file_digests(paths, workers=workers), strict=True))
    size = preprocessing.image_size
    pixels = np.empty((len(paths), max(views, 1), size, size, 3), dtype=np.uint8)
    per_chunk = max(1, DECODE_CHUNK // max(views, 1))
    chunks = [sources[start : start + per_chunk] for start in range(0, len(sources), per_chunk)]
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for some in decoded_views(pool, chunks, preprocessing, views, seed):
            pixels[done : done + len(some)] = some
            done += len(some)
            advance(len(some))
    labels = np.asarray([item.label for item in images.items], dtype=np.int64)
    return PixelSet(pixels=pixels, labels=labels)
