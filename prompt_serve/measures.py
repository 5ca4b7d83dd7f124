"""Measures of predictions on labeled images: interval of an accuracy, counts per class, confusions,
mistakes, and accuracy against the threshold for unknown images."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from prompt_serve.types import BoolArray, FloatArray, IntArray

_Z_95 = 1.959964  # 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Number of images of a class, of predictions of it, and of both at once."""

    images: int
    predicted: int
    right: int

    @property
    def recall(self) -> float | None:
        """Share of the class's images that are recognized; None without images."""
        return self.right / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Share of the predictions of the class that are right; None without predictions."""
        return self.right / self.predicted if self.predicted else None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Images that are answered with a class at a threshold, and the right ones among them."""

    threshold: float
    images: int
    right: int

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the answered images; None if there are none."""
        return self.right / self.images if self.images else None


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy (Wilson 1927, score interval).

    Args:
        right: number of right predictions.
        images: number of all predictions, 1 or more.
    """
    share, z2 = right / images, _Z_95**2
    center = (share + z2 / (2 * images)) / (1 + z2 / images)
    spread = math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    half = _Z_95 * spread / (1 + z2 / images)
    return center - half if right else 0.0, center + half if right < images else 1.0


def class_counts(labels: IntArray, predicted: IntArray, n_classes: int) -> list[ClassCounts]:
    """Count images and predictions of each of C classes, from labels and predictions (N,)."""
    images = np.bincount(labels, minlength=n_classes).tolist()
    predictions = np.bincount(predicted, minlength=n_classes).tolist()
    right = np.bincount(labels[labels == predicted], minlength=n_classes).tolist()
    return [
        ClassCounts(images=n, predicted=p, right=r)
        for n, p, r in zip(images, predictions, right, strict=True)
    ]


def confusion_matrix(labels: IntArray, predicted: IntArray, n_classes: int) -> IntArray:
    """Count images by true class (row) and predicted class (column): (C, C)."""
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def confusions(labels: IntArray, predicted: IntArray) -> list[tuple[int, int, int]]:
    """Return (class, predicted class, images) of all mistakes, the most frequent first."""
    wrong = labels != predicted
    counts = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    pairs = [(true, other, images) for (true, other), images in counts.items()]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def confident_mistakes(labels: IntArray, predicted: IntArray, confidence: FloatArray) -> list[int]:
    """Return the indices of all misclassified images, the most confident first."""
    wrong = np.flatnonzero(predicted != labels)
    order: list[int] = wrong[np.argsort(-confidence[wrong], kind="stable")].tolist()
    return order


def answered_at(
    threshold: float, confidence: FloatArray, right: BoolArray, rejected: BoolArray
) -> Answered:
    """Count the images that are answered at a threshold for the largest probability.

    Args:
        threshold: images below it are unknown.
        confidence: (N,) largest probabilities.
        right: (N,) True where the prediction is right.
        rejected: (N,) True where an image is unknown at any threshold.
    """
    answered = (confidence >= np.float32(threshold)) & ~rejected
    return Answered(
        threshold=threshold, images=int(answered.sum()), right=int((answered & right).sum())
    )
