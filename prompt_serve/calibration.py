"""Calibration of probabilities: temperature, threshold for unknown images, calibration error
(Guo et al. 2017, arXiv 1706.04599)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_serve.scoring import calibrated
from prompt_serve.types import BoolArray, DoubleArray, FloatArray, IntArray

BINS = 15  # of the expected calibration error, as in the paper
LARGEST = float(np.nextafter(np.float32(1.0), np.float32(0.0)))  # largest threshold
TEMPERATURES = (0.05, 20.0)  # bounds of the search
_HALVINGS = 60


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperature and threshold, as stored in a prompt file."""

    temperature: float = 1.0
    unknown_below: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ConfidenceBin:
    """Predictions with similar confidence."""

    images: int
    confidence: float  # mean
    accuracy: float


def calibrate(logits: FloatArray, labels: IntArray, *, unknown_share: float = 0.0) -> Calibration:
    """Fit temperature and threshold to validation images.

    Args:
        logits: (N, C), N >= 1, before the temperature.
        labels: (N,).
        unknown_share: share of these images that may be answered with "unknown".
    """
    temperature = fit_temperature(logits, labels)
    below = 0.0
    if unknown_share:
        confidence = calibrated(logits, temperature).max(axis=-1)
        # Below 1: no image would reach a threshold of 1.
        below = min(float(np.quantile(confidence, unknown_share, method="lower")), LARGEST)
    return Calibration(temperature=temperature, unknown_below=below)


def fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """Return the temperature T that minimizes the cross-entropy of ``softmax(logits / T)``.

    Guo et al., section 4.2. The cross-entropy is convex in 1 / T, so the root of its slope is found
    by bisection. Without a minimum, as when every image is classified correctly, the result is the
    nearer bound of ``TEMPERATURES``; it is 1 where the logits of every image are equal.

    Args:
        logits: (N, C).
        labels: (N,).
    """
    wide = logits.astype(np.float64)  # (N, C)
    own = wide[np.arange(len(labels)), labels]
    if not np.ptp(wide, axis=-1).any():
        return 1.0
    low, high = (1.0 / t for t in reversed(TEMPERATURES))
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high)
        weights = np.exp(middle * (wide - wide.max(axis=-1, keepdims=True)))  # (N, C)
        expected = (weights * wide).sum(axis=-1) / weights.sum(axis=-1)  # (N,)
        if float((expected - own).mean()) > 0.0:
            high = middle
        else:
            low = middle
    return float(np.float32(1.0 / np.sqrt(low * high)))


def expected_calibration_error(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the mean gap between confidence and accuracy over equal bins (equation 3).

    Args:
        probabilities: (N, C).
        labels: (N,).
    """
    confidence = probabilities.max(axis=-1)
    return calibration_error(confidence_bins(confidence, probabilities.argmax(axis=-1) == labels))


def confidence_bins(
    confidence: FloatArray | DoubleArray, right: BoolArray
) -> tuple[ConfidenceBin | None, ...]:
    """Sort predictions into equal bins of confidence; None marks an empty bin.

    Args:
        confidence: (N,) probabilities of the predicted classes.
        right: (N,) True where the prediction is right.
    """
    numbers = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return tuple(
        ConfidenceBin(
            images=int(chosen.sum()),
            confidence=float(confidence[chosen].mean()),
            accuracy=float(right[chosen].mean()),
        )
        if (chosen := numbers == number).any()
        else None
        for number in range(BINS)
    )


def calibration_error(bins: Sequence[ConfidenceBin | None]) -> float:
    """Return the expected calibration error of bins of confidence (equation 3)."""
    filled = [one for one in bins if one]
    images = max(1, sum(one.images for one in filled))
    return float(sum(abs(one.accuracy - one.confidence) * (one.images / images) for one in filled))
