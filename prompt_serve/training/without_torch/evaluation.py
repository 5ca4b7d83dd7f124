"""Accuracy and calibration of logits, and their comparison with the class names alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompt_serve.calibration import calibrate, expected_calibration_error
from prompt_serve.closed_form.cross_validation import OutOfFold
from prompt_serve.closed_form.learn import LearnedClasses
from prompt_serve.closed_form.sketch import held_out_similarities
from prompt_serve.errors import BackboneMismatch
from prompt_serve.measures import confusions, wilson_interval
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.scoring import calibrated
from prompt_serve.training.data.dataset import LabeledImage
from prompt_serve.types import BackboneRef, FloatArray, IntArray

MOST_CONFUSIONS = 10  # pairs of classes that an evaluation keeps


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Top-1 accuracy and calibration of a prompt on a set of images."""

    images: int
    accuracy: float  # 0..1, over all images
    per_class: tuple[float | None, ...]  # by label; None where a class has no image
    calibration_error: float  # expected calibration error, 0..1
    unknown: float = 0.0  # share of images answered with "unknown"
    known_accuracy: float | None = None  # of the other images; None where all are unknown
    predicted: tuple[int, ...] = ()  # images per predicted class
    # Most frequent confusions: class, predicted class, images.
    confusions: tuple[tuple[int, int, int], ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson_interval(round(self.accuracy * self.images), self.images)

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


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a finished prompt on images that it was not learned from."""

    part: str  # of the dataset, or "cross-validation"
    images: tuple[LabeledImage, ...]  # N
    logits: FloatArray  # (N, C), before the temperature of the prompt
    similarities: FloatArray | None  # (N,) to the prompt's sketch; None without one

    @classmethod
    def of_images(
        cls,
        part: str,
        images: tuple[LabeledImage, ...],
        prompt: Prompt,
        logits: FloatArray,
        features: FloatArray,
    ) -> "Scores":
        """Return the scores of N images with logits (N, C) and features (N, E)."""
        similarities = None if prompt.sketch is None else prompt.sketch.similarities(features)
        return cls(part=part, images=images, logits=logits, similarities=similarities)

    @property
    def labels(self) -> IntArray:
        """Labels (N,)."""
        return np.asarray([image.label for image in self.images], dtype=np.int64)


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
    predicted = logits.argmax(axis=1)
    right = predicted == labels
    known = probabilities.max(axis=1) >= (prompt.unknown_below if prompt else 0.0)
    if prompt and prompt.sketch and features is not None:
        known &= prompt.sketch.similarities(features) >= prompt.unlike_below
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
        predicted=tuple(np.bincount(predicted, minlength=logits.shape[1]).tolist()),
        confusions=tuple(confusions(labels, predicted)[:MOST_CONFUSIONS]),
    )


def compare_out_of_fold(
    held: OutOfFold, zero_shot: FloatArray, temperature: float = 1.0
) -> ZeroShotComparison:
    """Compare scores of held-out images with those of the template.

    Args:
        held: N' images.
        zero_shot: (N', C) logits of the template.
        temperature: of the held-out scores; class vectors have divided theirs by it.
    """
    return ZeroShotComparison(
        zero_shot=evaluate(zero_shot, held.labels),
        prompt=evaluate((held.logits / temperature).astype(np.float32), held.labels),
    )


def out_of_fold_scores(
    held: OutOfFold,
    prompt: Prompt,
    images: tuple[LabeledImage, ...],
    features: FloatArray,
    *,
    seed: int,
) -> Scores:
    """Return the scores of held-out training images; the sketch is made without them as well.

    Args:
        held: N' of the N training images.
        prompt: what was learned from all of them.
        images: N.
        features: (N, E).
        seed: of the folds.
    """
    # Class vectors have divided these logits by their temperature, prompts have not.
    factor = prompt.temperature if prompt.classes is not None else 1.0
    similarities = None
    if prompt.sketch is not None:
        labels = np.asarray([image.label for image in images], dtype=np.int64)
        cosines = held_out_similarities(features, labels, len(prompt.class_names), seed=seed)
        similarities = cosines[held.images].astype(np.float32)
    return Scores(
        part="cross-validation",
        images=tuple(images[index] for index in held.images),
        logits=(factor * held.logits).astype(np.float32),
        similarities=similarities,
    )


def check_backbone(
    prompt: Prompt, backbone: BackboneRef, former_fingerprint: str | None = None
) -> None:
    """Raise BackboneMismatch unless the prompt was learned on this backbone.

    Args:
        prompt: as read from its file.
        backbone: the one that runs here.
        former_fingerprint: see ``BackboneRef.current``.
    """
    learned_on = prompt.backbone.current(backbone, former_fingerprint)
    if learned_on.fingerprint == backbone.fingerprint:
        return
    reason = "Train it again on this backbone, or name the one that it was learned on."
    if learned_on.id == backbone.id:
        reason = (
            "The names are equal, but weights, activation, preprocessing or tokenizer are not. "
            "Name the backbone that it was learned on, or train it again on this one."
        )
    raise BackboneMismatch(
        f"Prompt {prompt.name!r} was learned on {learned_on.id!r} "
        f"({learned_on.fingerprint[:12]}), this is {backbone.id!r} "
        f"({backbone.fingerprint[:12]}). {reason}"
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
