"""How far probabilities can be trusted: a temperature, a threshold for unknown images, and the
expected calibration error that tells whether they help (Guo et al. 2017, arXiv 1706.04599)."""

from dataclasses import dataclass

import numpy as np

from prompt_serve.scoring import calibrated
from prompt_serve.types import FloatArray, IntArray

BINS = 15  # of the expected calibration error, as in the paper
LARGEST = float(np.nextafter(np.float32(1.0), np.float32(0.0)))  # threshold
TEMPERATURES = (0.05, 20.0)  # looked for between these
_HALVINGS = 60


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a prompt file keeps of it."""

    temperature: float = 1.0
    unknown_below: float = 0.0


def calibrate(logits: FloatArray, labels: IntArray, *, unknown_share: float = 0.0) -> Calibration:
    """Fit both on validation images.

    Args:
        logits: (N, C), N >= 1.
        labels: (N,).
        unknown_share: share of these images that may be answered with "unknown".
    """
    temperature = fit_temperature(logits, labels)
    below = 0.0
    if unknown_share:
        confidence = calibrated(logits, temperature).max(axis=-1)
        # Below 1: a threshold that nothing reaches would answer "unknown" for ever.
        below = min(float(np.quantile(confidence, unknown_share, method="lower")), LARGEST)
    return Calibration(temperature=temperature, unknown_below=below)


def fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """The temperature T with the least cross-entropy of ``softmax(logits / T)`` (section 4.2).

    In 1 / T the cross-entropy is convex, so its slope is followed to zero by bisection. Where
    every image is classified rightly it falls for ever, and the lowest temperature is returned;
    where no temperature changes it (equal scores), 1.
    """
    wide = logits.astype(np.float64)
    own = wide[np.arange(len(labels)), labels]
    if not np.ptp(wide, axis=-1).any():
        return 1.0
    low, high = (1.0 / t for t in reversed(TEMPERATURES))
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high)
        weights = np.exp(middle * (wide - wide.max(axis=-1, keepdims=True)))
        expected = (weights * wide).sum(axis=-1) / weights.sum(axis=-1)
        if float((expected - own).mean()) > 0.0:
            high = middle
        else:
            low = middle
    return float(np.float32(1.0 / np.sqrt(low * high)))


def expected_calibration_error(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean distance of confidence from accuracy over equal bins of confidence (equation 3).

    Args:
        probabilities: (N, C).
        labels: (N,).
    """
    confidence = probabilities.max(axis=-1)
    right = probabilities.argmax(axis=-1) == labels
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = [
        abs(float(right[chosen].mean()) - float(confidence[chosen].mean())) * float(chosen.mean())
        for number in range(BINS)
        if (chosen := bins == number).any()
    ]
    return float(sum(gaps))
