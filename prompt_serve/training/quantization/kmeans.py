"""Deterministic one-dimensional k-means, for codebooks.

In one dimension a cluster is a run of the sorted values, so a step of Lloyd's algorithm is a binary
search for the borders and a difference of prefix sums for the means. It starts at quantiles and
ends in a local optimum, which on a single-peaked distribution is close to the best there is.
"""

import numpy as np
from numpy.typing import NDArray

MAX_STEPS = 50
MAX_POINTS = 65_536  # more values than that are binned first
BINS = 4_096

Numbers = NDArray[np.float64]


def cluster_centers(values: Numbers, count: int, start: Numbers | None = None) -> Numbers:
    """Return the centers of ``count`` clusters, sorted.

    Args:
        values: (N,), N >= 1; if one is not finite, no center is.
        count: number of clusters; a cluster that gets no value keeps its center, so there may be
            more clusters than distinct values.
        start: (count,) sorted; None starts at the quantiles (i + 1/2) / count.

    Returns:
        (count,) means of the clusters; a value belongs to the nearest, or the lower of two.
    """
    if not np.isfinite(values).all():
        return np.full(count, np.nan)
    points, weights = _points(values)
    totals = np.concatenate([[0.0], np.cumsum(weights)])
    sums = np.concatenate([[0.0], np.cumsum(points * weights)])
    centers = _quantiles(points, totals[1:], count) if start is None else start
    borders = np.full(count + 1, -1)
    for _ in range(MAX_STEPS):
        previous, borders = borders, _borders(points, centers)
        if np.array_equal(borders, previous):
            break
        sizes = np.diff(totals[borders])
        means = np.diff(sums[borders]) / np.maximum(sizes, 1.0)
        # Differences of prefix sums lose the last bits, which may turn round equal centers.
        centers = np.sort(np.where(sizes > 0, means, centers))
    return centers


def _points(values: Numbers) -> tuple[Numbers, Numbers]:
    """Return sorted points, and the number of values that each stands for."""
    low, high = float(values.min()), float(values.max())
    if len(values) <= MAX_POINTS or low == high:
        return np.sort(values), np.ones(len(values))
    bins = np.minimum((values - low) * (BINS / (high - low)), BINS - 1).astype(np.int64)
    weights = np.bincount(bins, minlength=BINS).astype(np.float64)
    sums = np.bincount(bins, weights=values, minlength=BINS)
    filled = weights > 0
    return sums[filled] / weights[filled], weights[filled]


def _quantiles(points: Numbers, cumulated: Numbers, count: int) -> Numbers:
    ranks = (np.arange(count) + 0.5) / count * cumulated[-1]
    chosen: Numbers = points[np.searchsorted(cumulated, ranks)]
    return chosen


def _borders(points: Numbers, centers: Numbers) -> NDArray[np.int64]:
    """Return the start of each cluster among the sorted points, and the end: (count + 1,)."""
    middles = (centers[1:] + centers[:-1]) / 2
    inner = np.searchsorted(points, middles, side="right")
    return np.concatenate([[0], inner, [len(points)]]).astype(np.int64)
