"""Class vectors as codes of a few bits, each number rounded with the errors before it in mind.

Every row has a scale of its own, its standard deviation, and all rows share one codebook: the
levels that represent a normal distribution with the least squared error (Lloyd 1982; Max 1960).

Rounding each number to its nearest level ignores that image features are correlated: an error in
one dimension can be made up for in the next. Dimensions are rounded one after the other, and what
is left over is spread over those that follow, weighted by the second moment of the training
features (OPTQ, Frantar et al., ICLR 2023, arXiv 2210.17323, equations 2 and 3). The scores of the
training images are then as close as the codes allow.
"""

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from prompt_serve.prompts.class_vectors import ClassVectors
from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.types import DoubleArray, HalfArray

_DAMPING = 0.05  # of the mean second moment; keeps its inverse well conditioned
_LLOYD_STEPS = 400


def quantize_rows(vectors: DoubleArray, bits: int, second_moment: DoubleArray) -> ClassVectors:
    """Round class vectors (C, E) to codes; see ``row_codes``."""
    rows, scales = row_codes(vectors, bits, second_moment)
    return ClassVectors(rows=rows, scales=scales)


def row_codes(
    vectors: DoubleArray, bits: int, second_moment: DoubleArray
) -> tuple[QuantizedTensor, HalfArray]:
    """Round vectors to codes.

    Args:
        vectors: (C, E).
        bits: b per number: 1, 2, 4 or 8.
        second_moment: (E, E), ``X.T @ X / N`` of the training features.

    Returns:
        The vectors as codes (C, E) of one codebook (2^b,), and a scale for each row (C,).
    """
    codebook = normal_levels(bits).astype(np.float16)
    scales = vectors.std(axis=1).clip(min=1e-4).astype(np.float16)  # (C,)
    levels = codebook.astype(np.float64)
    width = vectors.shape[1]
    damping = max(_DAMPING * float(np.trace(second_moment)) / width, 1e-12)
    damped = second_moment + damping * np.eye(width)
    order = np.argsort(-np.diag(damped), kind="stable")  # the dimensions that matter most first
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T  # (E, E)
    left = vectors[:, order] / scales.astype(np.float64)[:, np.newaxis]
    codes = np.empty(vectors.shape, dtype=np.uint8)
    middles = (levels[1:] + levels[:-1]) / 2
    for place, dimension in enumerate(order):
        codes[:, dimension] = np.searchsorted(middles, left[:, place])
        error = (left[:, place] - levels[codes[:, dimension]]) / upper[place, place]
        left[:, place + 1 :] -= np.outer(error, upper[place, place + 1 :])
    return QuantizedTensor(indices=codes, codebook=codebook), scales


@lru_cache(maxsize=4)
def normal_levels(bits: int) -> DoubleArray:
    """Return the 2^b levels, rising, that fit a standard normal distribution best (Max 1960)."""
    normal = NormalDist()
    count = 2**bits
    levels = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    for _ in range(_LLOYD_STEPS):
        edges = [-math.inf, *((levels[1:] + levels[:-1]) / 2), math.inf]
        cumulative = np.array([normal.cdf(edge) for edge in edges])
        density = np.array([0.0, *(normal.pdf(edge) for edge in edges[1:-1]), 0.0])
        levels = -np.diff(density) / np.diff(cumulative)  # the mean of each interval
    return levels
