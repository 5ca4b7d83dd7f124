"""From scores of held-out images to a probability and a threshold per label.

The probability of a label is a sigmoid of its score (Platt 1999). The threshold is the one with the
highest F1. Both need held-out images with the label; a label with fewer than ``FEW_IMAGES`` of them
takes the sigmoid and the threshold that suit the others, in units of the spread of its scores on
images without it.
"""

from dataclasses import dataclass

import numpy as np

from prompt_serve.types import BoolArray, DoubleArray

FEW_IMAGES = 5  # held-out images with a label
# Without any label to learn from: an image has a label with the probability 1/2 where its score is
# three standard deviations above that of images without the label.
_GUESS = (2.0, -6.0)
_GUESSED_THRESHOLD = 0.5
_LEAST_GUESSED_SPREAD = 0.02  # a few images may have nearly equal scores
_NEWTON_STEPS = 50
_LEAST_SPREAD = 1e-3  # of scores, which are cosines: below it they say nothing
_THRESHOLDS = (1e-3, 1.0 - 1e-3)  # bounds; float16 keeps them apart from 0 and 1


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """Log odds ``slope * score + offset``; the slope is above zero."""

    slope: float
    offset: float


def fit_sigmoid(scores: DoubleArray, positive: BoolArray, draws: int = 1) -> Sigmoid | None:
    """Fit a sigmoid to scores by maximum likelihood; None if a higher score is no better.

    The targets are those of Platt (1999, section 2.2): (n+ + 1) / (n+ + 2) and 1 / (n- + 2), so
    that few or well separated images do not make the slope infinite.

    Args:
        scores: (N,).
        positive: (N,) True where an image has the label; some are True and some False.
        draws: number of times that every image is among the N.
    """
    center, spread = float(scores.mean()), float(scores.std())
    if spread < _LEAST_SPREAD:
        return None
    n_positive = positive.sum() / draws
    n_negative = len(scores) / draws - n_positive
    targets = np.where(positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    design = np.stack([(scores - center) / spread, np.ones_like(scores)], axis=1)  # (N, 2)
    weights = np.array([0.0, np.log((n_positive + 1) / (n_negative + 1))])
    loss = _cross_entropy(design @ weights, targets)
    for _ in range(_NEWTON_STEPS):
        shares = 0.5 * (1.0 + np.tanh(0.5 * (design @ weights)))
        gradient = design.T @ (shares - targets)
        curvature = (design * (shares * (1.0 - shares))[:, np.newaxis]).T @ design
        step = np.linalg.solve(curvature + 1e-9 * len(scores) * np.eye(2), gradient)
        while True:  # halve the step until the loss falls (Lin, Lin and Weng 2007, section 3)
            trial = weights - step
            new_loss = _cross_entropy(design @ trial, targets)
            if new_loss < loss or np.abs(step).max() < 1e-7:
                break
            step = step / 2
        if not new_loss < loss:
            break
        weights, loss = trial, new_loss
    slope = float(weights[0]) / spread
    if slope <= 0.0:
        return None
    return Sigmoid(slope=slope, offset=float(weights[1]) - slope * center)


def best_threshold(log_odds: DoubleArray, positive: BoolArray) -> float:
    """Return the probability from which on a label is given with the highest F1.

    It lies in the middle (of the log odds) between two images; of equal F1, the highest counts.

    Args:
        log_odds: (N,).
        positive: (N,); some are True.
    """
    order = np.argsort(-log_odds, kind="stable")
    ranked, hits = log_odds[order], np.cumsum(positive[order])
    f1 = 2.0 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # equal scores cannot be separated
    last = int(f1.argmax())
    following = ranked[last + 1] if last + 1 < len(ranked) else ranked[last] - 1.0
    middle = (ranked[last] + following) / 2
    return float(np.clip(0.5 * (1.0 + np.tanh(0.5 * middle)), *_THRESHOLDS))


def calibrate_labels(
    scores: DoubleArray, labels: BoolArray, draws: int
) -> tuple[list[Sigmoid], "SharedCalibration"]:
    """Fit one sigmoid per label.

    Args:
        scores: (N, C) of held-out images, larger where the label is likelier; NaN where unknown.
        labels: (N, C).
        draws: number of times that every image is among the N.

    Returns:
        The sigmoid of each label, and what labels with few images share.
    """
    n_labels = labels.shape[1]
    known = [np.isfinite(scores[:, label]) for label in range(n_labels)]
    fitted: dict[int, Sigmoid] = {}
    pooled: list[tuple[DoubleArray, BoolArray]] = []
    for label, rows in enumerate(known):
        own, positive = scores[rows, label], labels[rows, label]
        if positive.sum() < FEW_IMAGES * draws or positive.all():
            continue
        sigmoid = fit_sigmoid(own, positive, draws)
        if sigmoid is not None:
            fitted[label] = sigmoid
            pooled.append((_standardized(own, own[~positive]), positive))
    shared = _shared(pooled, draws)
    sigmoids = []
    for label, rows in enumerate(known):
        others = scores[rows & ~labels[:, label], label]
        sigmoids.append(fitted.get(label) or shared.for_label(others))
    return sigmoids, shared


@dataclass(frozen=True, kw_only=True)
class SharedCalibration:
    """Calibration of labels with few images."""

    sigmoid: Sigmoid  # of scores in standard deviations above those of images without the label
    threshold: float

    def for_label(self, others: DoubleArray) -> Sigmoid:
        """Return the sigmoid of a label from its scores on images without it."""
        center = float(others.mean()) if len(others) else 0.0
        spread = max(float(others.std()) if len(others) else 0.0, _LEAST_GUESSED_SPREAD)
        slope = self.sigmoid.slope / spread
        return Sigmoid(slope=slope, offset=self.sigmoid.offset - slope * center)


def _shared(pooled: list[tuple[DoubleArray, BoolArray]], draws: int) -> SharedCalibration:
    slope, offset = _GUESS
    guess = SharedCalibration(
        sigmoid=Sigmoid(slope=slope, offset=offset), threshold=_GUESSED_THRESHOLD
    )
    if not pooled:
        return guess
    scores = np.concatenate([own for own, _ in pooled])
    positive = np.concatenate([labels for _, labels in pooled])
    sigmoid = fit_sigmoid(scores, positive, draws)
    if sigmoid is None:
        return guess
    threshold = best_threshold(sigmoid.slope * scores + sigmoid.offset, positive)
    return SharedCalibration(sigmoid=sigmoid, threshold=threshold)


def _standardized(scores: DoubleArray, others: DoubleArray) -> DoubleArray:
    standardized: DoubleArray = (scores - others.mean()) / max(float(others.std()), _LEAST_SPREAD)
    return standardized


def _cross_entropy(log_odds: DoubleArray, targets: DoubleArray) -> float:
    return float((np.logaddexp(0.0, log_odds) - targets * log_odds).sum())
