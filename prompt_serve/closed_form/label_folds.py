"""Folds for cross-validation where an image has several labels (iterative stratification)."""

import numpy as np

from prompt_serve.types import BoolArray, DoubleArray, IntArray


def label_folds(labels: BoolArray, *, seed: int, folds: int) -> IntArray:
    """Assign every image to a fold so that each label is spread evenly over the folds.

    The label with the fewest images left goes first; each of its images joins the fold that lacks
    most images of the label, then the one that lacks most images (Sechidis, Tsoumakas and Vlahavas
    2011, algorithm 1). Images without a label fill the folds up at the end.

    Args:
        labels: (N, C), True where an image has a label.
        seed: of the order of the images and of ties.
        folds: number of folds K, 2 or more.

    Returns:
        (N,) fold numbers from 0 to K - 1.
    """
    rng = np.random.default_rng(seed)
    assigned = np.full(len(labels), -1, dtype=np.int64)
    lacking = np.tile(labels.sum(axis=0)[:, np.newaxis] / folds, (1, folds))  # (C, K) images
    lacking_in_all = np.full(folds, len(labels) / folds)  # (K,)
    left = labels.sum(axis=0)  # (C,) images of each label that have no fold yet

    def assign(image: int, fold: int) -> None:
        assigned[image] = fold
        lacking[labels[image], fold] -= 1
        lacking_in_all[fold] -= 1

    while left.any():
        label = int(np.where(left > 0, left, len(labels) + 1).argmin())
        members = np.flatnonzero(labels[:, label] & (assigned < 0))
        for image in rng.permutation(members):
            assign(image, _most_lacking(lacking[label], lacking_in_all, rng))
        left = left - labels[members].sum(axis=0)
    for image in rng.permutation(np.flatnonzero(assigned < 0)):
        assign(image, _most_lacking(lacking_in_all, lacking_in_all, rng))
    return assigned


def _most_lacking(first: DoubleArray, then: DoubleArray, rng: np.random.Generator) -> int:
    best = np.flatnonzero(first == first.max())
    best = best[then[best] == then[best].max()]
    return int(best[0] if len(best) == 1 else rng.choice(best))
