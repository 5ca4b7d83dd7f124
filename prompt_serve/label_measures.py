"""Measures of multi-label predictions: average precision, and F1 per label, micro and macro."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prompt_serve.types import BoolArray, DoubleArray, FloatArray


@dataclass(frozen=True, kw_only=True)
class LabelMeasures:
    """Measures of one label on a set of images."""

    positives: int  # images with the label
    average_precision: float | None  # None without positives
    given: int  # images that are given the label
    right: int  # of these, images that have it

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None without positives."""
        return _f1(self.right, self.given, self.positives) if self.positives else None


@dataclass(frozen=True, kw_only=True)
class LabelEvaluation:
    """Measures of a multi-label task on a set of images."""

    images: int
    labels: tuple[LabelMeasures, ...]  # in the order of the class names
    # Share of images answered with "unknown", whose labels count as well; None if not measured.
    unknown: float | None = None

    @property
    def mean_average_precision(self) -> float | None:
        """Mean over the labels with positives; None if there are none."""
        return _mean([label.average_precision for label in self.labels])

    @property
    def micro_f1(self) -> float:
        """F1 of all pairs of an image and a label together; 0 if none is right."""
        totals = [(label.right, label.given, label.positives) for label in self.labels]
        right, given, positives = (sum(column) for column in zip(*totals, strict=True))
        return _f1(right, given, positives)

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 of the labels with positives; None if there are none."""
        return _mean([label.f1 for label in self.labels])

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics of a prompt file, rounded to four digits."""
        return {
            "images": self.images,
            "mean_average_precision": _rounded(self.mean_average_precision),
            "micro_f1": _rounded(self.micro_f1),
            "macro_f1": _rounded(self.macro_f1),
            "average_precision": [_rounded(label.average_precision) for label in self.labels],
            "f1": [_rounded(label.f1) for label in self.labels],
            "positives": [label.positives for label in self.labels],
            "unknown": _rounded(self.unknown),
        }


def evaluate_labels(
    probabilities: FloatArray | DoubleArray,
    labels: BoolArray,
    thresholds: FloatArray,
    unknown: BoolArray | None = None,
) -> LabelEvaluation:
    """Measure probabilities of independent labels.

    Args:
        probabilities: (N, C); NaN leaves out an image for one label.
        labels: (N, C), True where an image has the label.
        thresholds: (C,); an image is given a label from this probability on.
        unknown: (N,) True where an image is unknown; None if that is not measured.
    """
    measured = np.isfinite(probabilities)
    given = probabilities.astype(np.float32) >= thresholds
    return LabelEvaluation(
        images=len(labels),
        labels=tuple(
            LabelMeasures(
                positives=int(labels[rows, label].sum()),
                average_precision=average_precision(
                    probabilities[rows, label], labels[rows, label]
                ),
                given=int(given[:, label].sum()),
                right=int((given & labels)[:, label].sum()),
            )
            for label, rows in enumerate(measured.T)
        ),
        unknown=None if unknown is None else float(unknown.mean()),
    )


def average_precision(scores: FloatArray | DoubleArray, positive: BoolArray) -> float | None:
    """Return the mean over the positives of the precision at their rank; None without positives.

    Images with equal scores share the lowest of their ranks.

    Args:
        scores: (N,), larger where the label is likelier.
        positive: (N,) True where an image has the label.
    """
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    gains = np.diff(hits[ends], prepend=0)  # positives of each group of equal scores
    return float((gains * hits[ends] / (ends + 1)).sum() / hits[-1])


def mean_average_precision(scores: FloatArray | DoubleArray, labels: BoolArray) -> float | None:
    """Return the mean average precision of scores (N, C), NaN left out; None without positives."""
    return _mean(
        [
            average_precision(scores[rows, label], labels[rows, label])
            for label, rows in enumerate(np.isfinite(scores).T)
        ]
    )


def _f1(right: int, given: int, positives: int) -> float:
    return 2.0 * right / max(1, given + positives)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
