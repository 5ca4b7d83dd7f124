"""From features to predictions: the one line in which the two flows meet, and what follows it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_serve.types import FloatArray


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


def unit(features: FloatArray) -> FloatArray:
    """Scale every row of (..., E) to length one."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return np.asarray(features / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)
