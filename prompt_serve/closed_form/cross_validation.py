"""Choose the shrinkage, the weight of the text and the temperature by out-of-fold scores.

Every image is scored by vectors that were learned without its fold. The settings with the lowest
cross-entropy of these scores, at their own best temperature, are chosen. No other image is seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prompt_serve.calibration import fit_temperature
from prompt_serve.closed_form.discriminant import class_statistics, discriminant_vectors
from prompt_serve.closed_form.folds import MOST_FOLDS, NEVER_HELD_OUT, stratified_folds
from prompt_serve.types import DoubleArray, FloatArray, IntArray

SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0)
TEXT_WEIGHTS = (0.1, 0.3, 1.0, 3.0)
REPEATS = 3  # draws of the folds: a single draw chooses by luck where there are few images


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Scores of held-out images: they measure what was learned and cost no further images."""

    logits: DoubleArray  # (N', C), at temperature 1
    labels: IntArray  # (N',)
    images: IntArray  # (N',) positions in the training set
    folds: IntArray  # (N',) the fold that each image was held out in


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that cross-validation chose, and the scores that it chose them by."""

    shrinkage: float = 1.0
    text_factor: float = 0.0  # class vectors are discriminant vectors + text_factor * text features
    temperature: float = 1.0  # of the scores of these vectors
    out_of_fold: OutOfFold | None = None  # None: every class has one image, so none is held out

    def vectors(
        self,
        features: FloatArray,
        labels: IntArray,
        n_classes: int,
        text_features: FloatArray | None = None,
    ) -> DoubleArray:
        """Learn class vectors (C, E) at temperature 1 from images (N, E) with labels (N,)."""
        statistics = class_statistics(features, labels, n_classes)
        vectors = discriminant_vectors(statistics, self.shrinkage)
        if text_features is not None:
            vectors = vectors + self.text_factor * text_features
        return vectors / self.temperature


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    shrinkage: float
    text_factor: float
    temperature: float
    scores: DoubleArray  # (R N', C): every draw of the folds, one after the other
    losses: DoubleArray  # (R, N') cross-entropy of each image

    @property
    def loss(self) -> float:
        return float(self.losses.mean())


def cross_validate(
    features: FloatArray,
    labels: IntArray,
    n_classes: int,
    *,
    seed: int,
    text_features: FloatArray | None = None,
) -> Settings:
    """Choose the settings of a discriminant.

    The text gets a weight only where it lowers the cross-entropy by more than one standard error:
    a few images cannot tell a prior that helps from one that was lucky.

    Args:
        features: (N, E), unit length along E.
        labels: (N,); every class has at least one image.
        n_classes: C.
        seed: of the folds.
        text_features: (C, E) class features of the class names; None leaves the text out.
    """
    draws = [stratified_folds(labels, seed=seed + repeat) for repeat in range(REPEATS)]
    images = np.flatnonzero(draws[0] != NEVER_HELD_OUT)
    if not len(images):
        return Settings()
    scores = np.concatenate(
        [_held_out_scores(features, labels, n_classes, folds)[:, images] for folds in draws], axis=1
    )  # (A, R N', C)
    targets = np.tile(labels[images], REPEATS)
    best = _best(_candidates(scores, targets))
    if text_features is not None:
        text = np.tile(features[images].astype(np.float64) @ text_features.T, (REPEATS, 1))
        with_text = _best(_candidates(scores, targets, text, TEXT_WEIGHTS))
        gains = (best.losses - with_text.losses).mean(axis=0)  # (N',)
        if gains.mean() > gains.std() / np.sqrt(len(gains)):
            best = with_text
    return Settings(
        shrinkage=best.shrinkage,
        text_factor=best.text_factor,
        temperature=best.temperature,
        out_of_fold=OutOfFold(
            logits=best.scores[: len(images)] / best.temperature,
            labels=labels[images],
            images=images,
            folds=draws[0][images],
        ),
    )


def _held_out_scores(
    features: FloatArray, labels: IntArray, n_classes: int, folds: IntArray
) -> DoubleArray:
    """Scores (A, N, C) of every image for each shrinkage, by vectors learned without its fold."""
    scores = np.zeros((len(SHRINKAGES), len(labels), n_classes))
    for fold in range(MOST_FOLDS):
        held_out = folds == fold
        if not held_out.any():
            continue
        statistics = class_statistics(features[~held_out], labels[~held_out], n_classes)
        for row, shrinkage in enumerate(SHRINKAGES):
            vectors = discriminant_vectors(statistics, shrinkage)
            scores[row, held_out] = features[held_out] @ vectors.T
    return scores


def _candidates(
    scores: DoubleArray,
    labels: IntArray,
    text: DoubleArray | None = None,
    text_weights: Sequence[float] = (0.0,),
) -> Iterable[_Candidate]:
    for shrinkage, image_scores in zip(SHRINKAGES, scores, strict=True):
        for weight in text_weights:
            # Weights are in units of spread, so that one grid suits every backbone and shrinkage.
            factor = 0.0 if text is None else weight * float(image_scores.std() / text.std())
            combined = image_scores if text is None else image_scores + factor * text
            spread = max(float(combined.std()), 1e-12)
            temperature = spread * fit_temperature(combined / spread, labels)
            yield _Candidate(
                shrinkage=shrinkage,
                text_factor=factor,
                temperature=temperature,
                scores=combined,
                losses=cross_entropy(combined / temperature, labels).reshape(REPEATS, -1),
            )


def _best(candidates: Iterable[_Candidate]) -> _Candidate:
    return min(candidates, key=lambda candidate: candidate.loss)


def cross_entropy(logits: DoubleArray, labels: IntArray) -> DoubleArray:
    """Cross-entropy (N,) of the softmax of logits (N, C)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    losses: DoubleArray = np.log(np.exp(shifted).sum(axis=1)) - own
    return losses
