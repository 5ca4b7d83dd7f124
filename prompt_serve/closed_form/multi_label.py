"""From image features to label vectors and a sketch, where an image has several labels or none.

Every image is scored by separators that were learned without its fold. The shrinkage with the best
mean average precision of these scores is chosen; they also give every label its sigmoid and its
threshold.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prompt_serve.closed_form.folds import MOST_FOLDS
from prompt_serve.closed_form.label_calibration import (
    FEW_IMAGES,
    SharedCalibration,
    Sigmoid,
    best_threshold,
    calibrate_labels,
)
from prompt_serve.closed_form.label_discriminant import (
    LabelStatistics,
    label_statistics,
    separators,
)
from prompt_serve.closed_form.label_folds import label_folds
from prompt_serve.closed_form.learn import encode_rows
from prompt_serve.closed_form.sketch import MOST_BYTES, mean_bytes, sketch_images
from prompt_serve.errors import ConfigInvalid
from prompt_serve.label_measures import mean_average_precision
from prompt_serve.prompts.class_vectors import ImageSketch, LabelVectors
from prompt_serve.prompts.quantized_tensor import StoredTensor, dequantize
from prompt_serve.types import BoolArray, DoubleArray, FloatArray, HalfArray, IntArray

SHRINKAGES = (1.0, 0.7, 0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003)  # of equal ones, the first is taken
REPEATS = 3  # draws of the folds: a single draw chooses by luck where there are few images
MANY_IMAGES = 3000  # one draw is enough
_SLOPES = (1e-2, 1e4)  # bounds that float16 holds
_MOST_OFFSET = 3e4


@dataclass(frozen=True, kw_only=True)
class OutOfFoldLabels:
    """Held-out images as the stored vectors would answer them; NaN for a label that was unknown."""

    probabilities: DoubleArray  # (N, C)
    labels: BoolArray  # (N, C)


@dataclass(frozen=True, kw_only=True)
class LearnedLabels:
    """Label vectors with everything that belongs to them in a prompt file."""

    vectors: LabelVectors
    sketch: ImageSketch
    unlike_below: float
    shrinkage: float
    out_of_fold: OutOfFoldLabels


def learn_labels(
    features: FloatArray, labels: BoolArray, *, bits: int = 4, seed: int = 1
) -> LearnedLabels:
    """Learn label vectors from all images of a task.

    Args:
        features: (N, E), unit length along E.
        labels: (N, C), True where an image has a label; some images have each label and some lack
            it.
        bits: per number: 1, 2, 4, 8, or 16 for float16.
        seed: of the folds.

    Raises:
        ConfigInvalid: a label is on no image, or on all of them.
    """
    _check_labels(labels)
    draws = REPEATS if len(features) < MANY_IMAGES else 1
    held_out = _HeldOut(features, labels, [seed + draw for draw in range(draws)])
    shrinkage = max(SHRINKAGES, key=held_out.mean_average_precision)
    scores = held_out.scores(shrinkage, bits)  # (R N, C)
    repeated = np.tile(labels, (draws, 1))
    sigmoids, shared = calibrate_labels(scores, repeated, draws)

    statistics = label_statistics(features, labels)
    rows, scales = encode_rows(separators(statistics, shrinkage), bits, features - statistics.mean)
    directions = _unit(rows)
    lengths = np.linalg.norm(dequantize(rows).astype(np.float64), axis=1)  # (C,)
    centers = directions @ statistics.mean  # held-out scores are of features without their mean
    scales, offsets = _stored_sigmoids(sigmoids, lengths, centers)
    slopes = scales.astype(np.float64) * lengths  # after rounding
    log_odds = slopes * (scores + centers) + offsets.astype(np.float64)
    groups = _groups(labels, int(MOST_BYTES / mean_bytes(features.shape[1])))
    sketch = sketch_images(features, groups, int(groups.max()) + 1, seed=seed)
    return LearnedLabels(
        vectors=LabelVectors(
            rows=rows,
            scales=scales,
            offsets=offsets,
            thresholds=_thresholds(log_odds, repeated, shared, draws),
        ),
        sketch=sketch.encoding,
        unlike_below=sketch.unlike_below,
        shrinkage=shrinkage,
        out_of_fold=OutOfFoldLabels(
            probabilities=0.5 * (1.0 + np.tanh(0.5 * log_odds[: len(labels)])), labels=labels
        ),
    )


class _HeldOut:
    """Scores of every image by separators that were learned without its fold."""

    def __init__(self, features: FloatArray, labels: BoolArray, seeds: list[int]) -> None:
        self._features, self._labels = features, labels
        self._folds = [label_folds(labels, seed=seed, folds=MOST_FOLDS) for seed in seeds]
        self._statistics: list[dict[int, LabelStatistics]] = [
            {
                fold: label_statistics(features[folds != fold], labels[folds != fold])
                for fold in np.unique(folds).tolist()
                if (folds != fold).any()
            }
            for folds in self._folds
        ]

    def mean_average_precision(self, shrinkage: float) -> float:
        """Return the mean over the draws; 0 if no label has a held-out image."""
        draws = np.split(self.scores(shrinkage), len(self._folds))
        found = [mean_average_precision(scores, self._labels) for scores in draws]
        return float(np.mean([each or 0.0 for each in found]))

    def scores(self, shrinkage: float, bits: int | None = None) -> DoubleArray:
        """Return scores (R N, C), draw after draw: cosines of the features without their mean.

        NaN where the other folds have no image with the label, or none without.

        Args:
            shrinkage: of the separators.
            bits: round the separators; None for exact ones.
        """
        found = np.full((len(self._folds), *self._labels.shape), np.nan)
        for draw, fold, statistics in self._parts():
            rows = self._folds[draw] == fold
            vectors = separators(statistics, shrinkage)
            if bits is not None:
                others = self._features[~rows] - statistics.mean
                vectors = _unit(encode_rows(vectors, bits, others)[0])
            scores = (self._features[rows] - statistics.mean) @ vectors.T
            found[draw, rows] = np.where(statistics.separable, scores, np.nan)
        return found.reshape(-1, self._labels.shape[1])

    def _parts(self) -> Iterator[tuple[int, int, LabelStatistics]]:
        for draw, of_draw in enumerate(self._statistics):
            for fold, statistics in of_draw.items():
                yield draw, fold, statistics


def _check_labels(labels: BoolArray) -> None:
    counts = labels.sum(axis=0)
    wrong = np.flatnonzero((counts == 0) | (counts == len(labels))).tolist()
    if wrong or not labels.shape[1]:
        raise ConfigInvalid(
            f"Labels {wrong} are on no image or on all {len(labels)}; expected images with each "
            f"label, and images without it. Add such images, or leave the labels out."
        )


def _unit(rows: StoredTensor) -> DoubleArray:
    wide = dequantize(rows).astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: DoubleArray = wide / np.where(lengths > 0.0, lengths, 1.0)
    return unit


def _stored_sigmoids(
    sigmoids: list[Sigmoid], lengths: DoubleArray, centers: DoubleArray
) -> tuple[HalfArray, HalfArray]:
    """Return scales (C,) of the rows and offsets (C,), for features that have their mean.

    The rounded slope moves about the score at which the sigmoid is 1/2, which stays in place.
    """
    slopes = np.array([sigmoid.slope for sigmoid in sigmoids]).clip(*_SLOPES)
    middles = np.array([-sigmoid.offset / sigmoid.slope for sigmoid in sigmoids])
    scales = (slopes / lengths).astype(np.float16)
    offsets = -scales.astype(np.float64) * lengths * (middles + centers)
    return scales, offsets.clip(-_MOST_OFFSET, _MOST_OFFSET).astype(np.float16)


def _thresholds(
    log_odds: DoubleArray, labels: BoolArray, shared: SharedCalibration, draws: int
) -> HalfArray:
    thresholds = np.full(labels.shape[1], shared.threshold)
    for label in range(labels.shape[1]):
        known = np.isfinite(log_odds[:, label])
        positive = labels[known, label]
        if positive.sum() >= FEW_IMAGES * draws:
            thresholds[label] = best_threshold(log_odds[known, label], positive)
    return thresholds.astype(np.float16)


def _groups(labels: BoolArray, most: int) -> IntArray:
    """Group images (N,) by one of their labels, for the sketch; those without any are a group.

    The rarest label of an image says most about it. Where that makes more groups than ``most``, the
    commonest one does, so that nested labels are grouped by the outer one.
    """
    counts = labels.sum(axis=0)
    rarest = np.where(labels, counts, len(labels) + 1).argmin(axis=1)
    commonest = np.where(labels, counts, -1).argmax(axis=1)
    for chosen in (rarest, commonest):
        named = np.where(labels.any(axis=1), chosen, labels.shape[1])
        present, groups = np.unique(named, return_inverse=True)
        if len(present) <= most:
            break
    return groups.astype(np.int64)
