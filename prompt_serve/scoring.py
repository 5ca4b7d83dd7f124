"""From features to predictions: the one line in which the two flows meet, and what follows it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_serve.types import FloatArray, IntArray

_MOST_PASSES = 16


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One class proposed for one image."""

    class_name: str
    label: int  # index of the class in its task
    probability: float  # softmax over all classes of the task, at its temperature
    logit: float  # before the temperature


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
    """Probabilities along the last axis; the largest logit is taken off first: none overflows."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def calibrated(logits: FloatArray, temperature: float) -> FloatArray:
    """Probabilities of scores (..., C) at a task's temperature (Guo et al. 2017, section 4.2)."""
    return softmax(logits / np.float32(temperature))


def is_unknown(best_probability: float, unknown_below: float) -> bool:
    """Whether an image shows none of a task's classes: its best probability is below the threshold.

    Compared in float32, in which the probability was computed.
    """
    return bool(np.float32(best_probability) < np.float32(unknown_below))


def top_classes(
    logits: FloatArray, class_names: Sequence[str], k: int, *, temperature: float = 1.0
) -> tuple[Prediction, ...]:
    """The ``k`` best classes of one image, best first; equal logits keep the order of the classes.

    Args:
        logits: (C,) of one image.
        class_names: C names.
        k: how many; all C where there are fewer.
        temperature: of the probabilities; it changes neither the order nor the logits.
    """
    k = min(k, len(class_names))
    probabilities = calibrated(logits, temperature)
    # argpartition first: sorting 100,000 classes to show five would cost more than scoring them.
    candidates = np.flatnonzero(logits >= np.partition(logits, -k)[-k])
    order = candidates[np.argsort(-logits[candidates], kind="stable")][:k]
    return tuple(
        Prediction(
            class_name=class_names[label],
            label=int(label),
            probability=float(probabilities[label]),
            logit=float(logits[label]),
        )
        for label in order
    )


@dataclass(frozen=True)
class BestClasses:
    """The best classes of one task for B images, best first; k, or all where there are fewer."""

    labels: IntArray  # (B, k)
    logits: FloatArray  # (B, k)
    probabilities: FloatArray  # (B, k)


def best_classes(
    image_features: FloatArray,
    class_features: Sequence[FloatArray],
    logit_scale: float,
    temperatures: Sequence[float],
    k: int,
) -> list[BestClasses]:
    """``top_classes`` of many tasks for many images: a handful of array operations in all.

    Tasks whose numbers of classes round up to the same power of two are one array (B, tasks,
    classes), filled up with minus infinity, so a hundred tasks cost about what one of all their
    classes costs. What numpy does for a task alone would otherwise outweigh its numbers.

    Args:
        image_features: (B, E), unit length along E.
        class_features: of each task (C, E), unit length along E.
        logit_scale: as in ``class_logits``.
        temperatures: of each task's probabilities.
        k: how many classes of each task; equal logits keep the order of the classes.
    """
    groups: dict[int, list[int]] = {}
    for task, features in enumerate(class_features):
        groups.setdefault(_next_power_of_two(len(features)), []).append(task)
    best: dict[int, BestClasses] = {}
    for width, tasks in groups.items():
        scales = np.asarray([temperatures[task] for task in tasks], dtype=np.float32)
        logits = np.full((len(image_features), len(tasks), width), -np.inf, dtype=np.float32)
        for place, task in enumerate(tasks):
            features = class_features[task]
            logits[:, place, : len(features)] = class_logits(image_features, features, logit_scale)
        labels, chosen, probabilities = _best_of_rows(logits, scales, min(k, width))
        for place, task in enumerate(tasks):
            shown = np.s_[:, place, : min(k, len(class_features[task]))]
            best[task] = BestClasses(labels[shown], chosen[shown], probabilities[shown])
    return [best[task] for task in range(len(class_features))]


def _best_of_rows(
    logits: FloatArray, temperatures: FloatArray, k: int
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Labels, logits and probabilities (B, tasks, k) of the best of (B, tasks, classes)."""
    weights = logits / temperatures[:, np.newaxis]
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    totals = weights.sum(axis=-1, keepdims=True)
    labels = _first_largest(logits, k)
    probabilities = np.take_along_axis(weights, labels, axis=-1) / totals
    return labels, np.take_along_axis(logits, labels, axis=-1), probabilities


def _first_largest(values: FloatArray, k: int) -> IntArray:
    """Places of the k largest along the last axis, largest first; of equal ones the first."""
    if k > _MOST_PASSES:
        return np.argsort(-values, axis=-1, kind="stable")[..., :k]
    # Passing k times over a hundred classes is many times faster than sorting them.
    left = values.copy()
    places = np.empty((*values.shape[:-1], k), dtype=np.int64)
    for rank in range(k):
        places[..., rank] = left.argmax(axis=-1)
        np.put_along_axis(left, places[..., rank : rank + 1], -np.inf, axis=-1)
    return places


def _next_power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def unit(features: FloatArray) -> FloatArray:
    """Scale every row of (..., E) to length one."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return np.asarray(features / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)
