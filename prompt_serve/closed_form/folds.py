"""Stratified folds for cross-validation."""

import numpy as np

from prompt_serve.types import IntArray

MOST_FOLDS = 5
NEVER_HELD_OUT = -1


def stratified_folds(labels: IntArray, *, seed: int, folds: int = MOST_FOLDS) -> IntArray:
    """Assign every image to a fold so that each class is spread evenly over the folds.

    The only image of a class is never held out, since no model could know the class without it.
    A class with fewer images than folds is held out in as many folds as it has images.

    Args:
        labels: (N,).
        seed: of the random order within each class.
        folds: number of folds K, 2 or more.

    Returns:
        (N,) fold numbers from 0 to K - 1, or ``NEVER_HELD_OUT``.
    """
    rng = np.random.default_rng(seed)
    assigned = np.full(len(labels), NEVER_HELD_OUT, dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            # A random first fold: small classes must not all be held out together in fold 0.
            assigned[members] = (np.arange(len(members)) + rng.integers(folds)) % folds
    return assigned
