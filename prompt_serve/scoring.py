"""Score image features against class features, and select the best classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_serve.types import FloatArray, IntArray

_MAX_PASSES = 16


def class_logits(
    image_features: FloatArray, class_features: FloatArray, logit_scale: float
) -> FloatArray:
    """Score every image against every class (CoOp, eq. 3, before the softmax).

    Args:
        image_features: (B, E), unit length along E.
        class_features: (C, E), unit length along E.
        logit_scale: 1 / temperature, dimensionless, already exponentiated
            (CLIP checkpoints store its logarithm).

    Returns:
        (B, C) logits; larger means more alike.
    """
    return np.float32(logit_scale) * (image_features @ class_features.T)


def softmax(logits: FloatArray) -> FloatArray:
    """Return probabilities along the last axis.

    The largest logit is subtracted first, so that no exponential overflows.
    """
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def calibrated(logits: FloatArray, temperature: float) -> FloatArray:
    """Return probabilities (..., C) of logits at a temperature (Guo et al. 2017, section 4.2)."""
    return softmax(logits / np.float32(temperature))


def is_unknown(best_probability: float, unknown_below: float) -> bool:
    """Return True if the best probability of an image is below the task's threshold.

    Both are compared as float32, the type in which probabilities are computed.
    """
    return bool(np.float32(best_probability) < np.float32(unknown_below))


def is_unlike(similarity: float | None, unlike_below: float) -> bool:
    """Return True if an image is unlike the training images of a task.

    Args:
        similarity: cosine to the nearest direction of the task's sketch; None without a sketch.
        unlike_below: threshold of the task.
    """
    return similarity is not None and similarity < unlike_below


@dataclass(frozen=True)
class BestClasses:
    """The k best classes of one task for B images, best first; all classes if there are fewer."""

    labels: IntArray  # (B, k)
    logits: FloatArray  # (B, k)
    probabilities: FloatArray  # (B, k)
    # Of a multi-label task: the labels of each image from their threshold on, best first.
    accepted: tuple[IntArray, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """Map from cosines to independent probabilities, one sigmoid per label (Platt 1999)."""

    slopes: FloatArray  # (C,), above zero
    offsets: FloatArray  # (C,)
    thresholds: FloatArray  # (C,) an image has a label from this probability on

    def log_odds(self, cosines: FloatArray) -> FloatArray:
        """Return the log odds (..., C) of cosines (..., C)."""
        return self.slopes * cosines + self.offsets

    def probabilities(self, cosines: FloatArray) -> FloatArray:
        """Return the probabilities (..., C) of cosines (..., C)."""
        return sigmoid(self.log_odds(cosines))

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.slopes.nbytes + self.offsets.nbytes + self.thresholds.nbytes


def sigmoid(log_odds: FloatArray) -> FloatArray:
    """Return probabilities; the hyperbolic tangent, unlike an exponential, does not overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * log_odds)), dtype=np.float32)


def best_labels(
    image_features: FloatArray,
    class_features: FloatArray,
    scores: LabelScores,
    logit_scale: float,
    k: int,
) -> BestClasses:
    """Return the k most probable labels of a multi-label task, and those that each image has.

    Args:
        image_features: (B, E), unit length along E.
        class_features: (C, E), unit length along E.
        scores: of the task.
        logit_scale: as in ``class_logits``.
        k: number of labels; equally probable ones keep their order.
    """
    logits = class_logits(image_features, class_features, logit_scale)  # (B, C)
    log_odds = scores.log_odds(logits / np.float32(logit_scale))
    probabilities = sigmoid(log_odds)
    # By log odds, which still differ where probabilities are rounded to 1.
    order = np.argsort(-log_odds, axis=1, kind="stable")
    above = np.take_along_axis(probabilities >= scores.thresholds, order, axis=1)
    best = order[:, :k]
    return BestClasses(
        labels=best,
        logits=np.take_along_axis(logits, best, axis=1),
        probabilities=np.take_along_axis(probabilities, best, axis=1),
        accepted=tuple(row[own] for row, own in zip(order, above, strict=True)),
    )


def best_classes(
    image_features: FloatArray,
    class_features: Sequence[FloatArray],
    logit_scale: float,
    temperatures: Sequence[float],
    k: int,
) -> list[BestClasses]:
    """Return the k best classes of each task for each image.

    Tasks whose class counts round up to the same power of two share one array (B, tasks, classes)
    padded with minus infinity. A hundred tasks then cost about as much as one task with all their
    classes; task by task, the overhead of the numpy calls would outweigh the arithmetic.

    Args:
        image_features: (B, E), unit length along E.
        class_features: one (C, E) array per task, unit length along E.
        logit_scale: as in ``class_logits``.
        temperatures: one temperature per task.
        k: number of classes per task; classes with equal logits keep their order.
    """
    groups: dict[int, list[int]] = {}
    for task, features in enumerate(class_features):
        groups.setdefault(_next_power_of_two(len(features)), []).append(task)
    best: dict[int, BestClasses] = {}
    for width, tasks in groups.items():
        divisors = np.asarray([temperatures[task] for task in tasks], dtype=np.float32)
        logits = np.empty((len(image_features), len(tasks), width), dtype=np.float32)
        logits.fill(-np.inf)
        for index, task in enumerate(tasks):
            features = class_features[task]
            logits[:, index, : len(features)] = class_logits(image_features, features, logit_scale)
        labels, top_logits, probabilities = _best_of_rows(logits, divisors, min(k, width))
        for index, task in enumerate(tasks):
            own = np.s_[:, index, : min(k, len(class_features[task]))]  # without the padding
            best[task] = BestClasses(labels[own], top_logits[own], probabilities[own])
    return [best[task] for task in range(len(class_features))]


def _best_of_rows(
    logits: FloatArray, temperatures: FloatArray, k: int
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Select the k best of (B, tasks, classes): labels, logits, probabilities (B, tasks, k)."""
    weights = logits / temperatures[:, np.newaxis]
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    totals = weights.sum(axis=-1, keepdims=True)
    labels = first_largest(logits, k)
    # As np.take_along_axis does, which takes longer than all else here for one image and one task.
    images, tasks = (np.arange(size) for size in logits.shape[:2])
    own = images[:, np.newaxis, np.newaxis], tasks[:, np.newaxis], labels
    return labels, logits[own], weights[own] / totals


def first_largest(values: FloatArray, k: int) -> IntArray:
    """Return the indices of the k largest along the last axis, largest first; ties keep order."""
    if k > _MAX_PASSES:
        return np.argsort(-values, axis=-1, kind="stable")[..., :k]
    if k == 1:
        return np.asarray(values.argmax(axis=-1)[..., np.newaxis], dtype=np.int64)
    # k passes over a hundred classes are many times faster than sorting them.
    remaining = values.reshape(-1, values.shape[-1]).copy()
    rows = np.arange(len(remaining))
    indices = np.empty((len(remaining), k), dtype=np.int64)
    for rank in range(k):
        best = indices[:, rank] = remaining.argmax(axis=-1)
        remaining[rows, best] = -np.inf
    return indices.reshape(*values.shape[:-1], k)


def _next_power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def unit(features: FloatArray) -> FloatArray:
    """Scale every row of (..., E) to length one."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return np.asarray(features / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)
