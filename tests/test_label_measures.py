"""Measures of multi-label predictions against their definitions, image by image."""

import numpy as np
import pytest

from prompt_serve.label_measures import average_precision, evaluate_labels, mean_average_precision


def by_definition(scores: list[float], positive: list[bool]) -> float:
    """Mean over the positives of the precision among all images with at least their score."""
    precisions = []
    for own in (s for s, p in zip(scores, positive, strict=True) if p):
        above = [p for s, p in zip(scores, positive, strict=True) if s >= own]
        precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_is_the_mean_precision_at_the_positives(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, 40) / levels  # few levels: many ties
    positive = rng.random(40) < 0.3
    positive[0] = True

    expected = by_definition(scores.tolist(), positive.tolist())

    assert average_precision(scores, positive) == pytest.approx(expected)


def test_labels_without_positives_do_not_count() -> None:
    scores = np.array([[0.9, 0.2, np.nan], [0.1, 0.8, 0.5], [0.5, 0.1, 0.5]])
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0]], bool)
    assert average_precision(scores[:, 1], labels[:, 1]) is None
    assert mean_average_precision(scores, labels) == 1.0
    assert mean_average_precision(scores[:, 1:], labels[:, 1:]) is None


@pytest.mark.parametrize("seed", range(5))
def test_f1_is_counted_pair_by_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.random((30, 4))
    labels = rng.random((30, 4)) < 0.4
    labels[:, 3] = False  # a label without positives counts for micro F1 only
    thresholds = np.array([0.2, 0.5, 0.9, 0.5], np.float32)

    found = evaluate_labels(probabilities, labels, thresholds)

    right = [0] * 4
    wrong = [0] * 4  # given and not there, or there and not given
    for image in range(30):
        for label in range(4):
            given = probabilities[image, label] >= thresholds[label]
            right[label] += given and labels[image, label]
            wrong[label] += given != labels[image, label]
    f1 = [2 * r / (2 * r + w) for r, w in zip(right, wrong, strict=True)]
    assert [label.f1 for label in found.labels[:3]] == pytest.approx(f1[:3])
    assert found.macro_f1 == pytest.approx(sum(f1[:3]) / 3)
    assert found.micro_f1 == pytest.approx(2 * sum(right) / (2 * sum(right) + sum(wrong)))
    assert [label.positives for label in found.labels] == labels.sum(axis=0).tolist()
