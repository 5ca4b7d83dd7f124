"""Accuracy and calibration of logits, and their comparison with the class names alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompt_serve.calibration import calibrate, expected_calibration_error
from prompt_serve.closed_form.learn import LearnedClasses
from prompt_serve.errors import BackboneMismatch
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.scoring import calibrated
from prompt_serve.types import BackboneRef, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Top-1 accuracy and calibration of a prompt on a set of images."""

    images: int
    accuracy: float  # 0..1, over all images
    per_class: tuple[float | None, ...]  # by label; None where a class has no image
    calibration_error: float  # expected calibration error, 0..1
    unknown: float = 0.0  # share of images answered with "unknown"
    known_accuracy: float | None = None  # of the other images; None where all are unknown

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics of a prompt file, rounded to four digits."""
        rounded = {
            "images": self.images,
            "accuracy": round(self.accuracy, 4),
            "per_class": [None if a is None else round(a, 4) for a in self.per_class],
            "calibration_error": round(self.calibration_error, 4),
        }
        if self.unknown:
            known = self.known_accuracy
            rounded["unknown"] = round(self.unknown, 4)
            rounded["known_accuracy"] = None if known is None else round(known, 4)
        return rounded


@dataclass(frozen=True, kw_only=True)
class ZeroShotComparison:
    """Accuracy of the prompt and of the template alone, on the same images."""

    zero_shot: Evaluation
    prompt: Evaluation


def evaluate(
    logits: FloatArray,
    labels: IntArray,
    prompt: Prompt | None = None,
    features: FloatArray | None = None,
) -> Evaluation:
    """Return the accuracy of logits; of equal logits the first class counts.

    Args:
        logits: (N, C), before the temperature.
        labels: (N,).
        prompt: supplies temperature and thresholds; None for neither.
        features: (N, E) of the images, to recognize those that are unlike the prompt's sketch.
    """
    temperature = prompt.temperature if prompt else 1.0
    probabilities = calibrated(logits, temperature)
    right = logits.argmax(axis=1) == labels
    known = probabilities.max(axis=1) >= (prompt.unknown_below if prompt else 0.0)
    if prompt and prompt.sketch and features is not None:
        similarities = (features @ prompt.sketch.directions().T).max(axis=1)  # (N,)
        known &= similarities >= prompt.unlike_below
    return Evaluation(
        images=len(labels),
        accuracy=float(right.mean()),
        per_class=tuple(
            float(right[of_class].mean()) if (of_class := labels == label).any() else None
            for label in range(logits.shape[1])
        ),
        calibration_error=expected_calibration_error(probabilities, labels),
        unknown=float(1.0 - known.mean()),
        known_accuracy=float(right[known].mean()) if known.any() else None,
    )


def check_backbone(prompt: Prompt, backbone: BackboneRef) -> None:
    """Raise BackboneMismatch unless the prompt was learned on this backbone."""
    if prompt.backbone.fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"Prompt {prompt.name!r} was learned on {prompt.backbone.id!r} "
            f"({prompt.backbone.fingerprint[:12]}), this is {backbone.id!r} "
            f"({backbone.fingerprint[:12]}). Train it again on this backbone."
        )


def metrics_of(
    comparisons: Mapping[str, ZeroShotComparison], images: Mapping[str, int]
) -> dict[str, Any]:
    """Return the metrics of the prompt file."""
    parts = {
        part: {
            **comparison.prompt.to_dict(),
            "zero_shot_accuracy": round(comparison.zero_shot.accuracy, 4),
        }
        for part, comparison in comparisons.items()
    }
    return {**parts, "images": dict(images)}


def unknown_threshold(learned: LearnedClasses, unknown_share: float) -> float:
    """Return the probability that ``unknown_share`` of held-out images stay below; 0 if none."""
    held = learned.out_of_fold
    if held is None or not unknown_share:
        return 0.0
    logits = held.logits.astype(np.float32)
    return calibrate(logits, held.labels, unknown_share=unknown_share).unknown_below
