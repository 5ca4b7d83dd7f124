"""Batch sizes that a CUDA device is warmed up for; smaller batches are padded to them."""

from collections.abc import Callable, Sequence

import numpy as np

from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.types import FloatArray, PixelArray

Rows = Sequence[ImageRows | None]


def batch_buckets(max_batch: int) -> list[int]:
    """Return 1, 2, 4, ... and ``max_batch``, which is always the last."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch:
        sizes.append(sizes[-1] * 2)
    return sorted({*sizes, max_batch})


def in_bucket(
    encode: Callable[[PixelArray, Rows], FloatArray],
    pixels: PixelArray,
    rows: Rows,
    buckets: Sequence[int],
) -> FloatArray:
    """Encode images padded to the next batch size by black ones without rows.

    Args:
        encode: encodes pixels (B, S, S, 3) and the rows of each image to (B, E).
        pixels: (N, S, S, 3).
        rows: of each image, None without; empty where no image has any.
        buckets: batch sizes, ascending. Larger batches are not padded.

    Returns:
        features (N, E) of the images alone.
    """
    n = len(pixels)
    missing = next((size for size in buckets if size >= n), n) - n
    if missing:
        black = np.zeros((missing, *pixels.shape[1:]), dtype=np.uint8)
        pixels = np.concatenate([pixels, black])
        rows = [*rows, *[None] * missing] if rows else rows
    return encode(pixels, rows)[:n]
