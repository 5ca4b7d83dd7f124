"""Measures of predictions, against counts and formulas written another way."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from prompt_serve.measures import (
    ClassCounts,
    answered_at,
    class_counts,
    confident_mistakes,
    confusion_matrix,
    confusions,
    wilson_interval,
)
from prompt_serve.types import IntArray


@pytest.mark.parametrize(("right", "images"), [(0, 1), (0, 10), (5, 8), (165, 200), (10, 10)])
def test_the_bounds_of_the_interval_solve_the_score_equation(right: int, images: int) -> None:
    z, share = NormalDist().inv_cdf(0.975), right / images
    low, high = wilson_interval(right, images)
    assert 0.0 <= low <= share <= high <= 1.0
    for bound in (low, high):
        # (share - p)^2 = z^2 p (1 - p) / n; the quantile is written with seven digits.
        assert (share - bound) ** 2 == pytest.approx(
            z**2 * bound * (1 - bound) / images, rel=1e-5, abs=1e-12
        )


def test_the_interval_of_five_of_eight_by_hand() -> None:
    # Center (0.625 + 3.84 / 16) / (1 + 3.84 / 8), half 1.96 sqrt(0.0293 + 0.0150) / 1.48.
    assert wilson_interval(5, 8) == pytest.approx((0.3057, 0.8632), abs=1e-4)


@pytest.fixture
def answers(rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Labels and predictions of 200 images of 6 classes; class 5 has none of either."""
    return rng.integers(0, 5, 200), rng.integers(0, 5, 200)


def test_counts_of_classes_and_confusions_are_those_of_the_matrix(
    answers: tuple[IntArray, IntArray],
) -> None:
    labels, predicted = answers
    matrix = confusion_matrix(labels, predicted, 6)
    for (true, other), count in np.ndenumerate(matrix):
        assert count == sum(
            pair == (true, other) for pair in zip(labels.tolist(), predicted.tolist(), strict=True)
        )
    counts = class_counts(labels, predicted, 6)
    assert [one.images for one in counts] == matrix.sum(axis=1).tolist()
    assert [one.predicted for one in counts] == matrix.sum(axis=0).tolist()
    assert [one.right for one in counts] == matrix.diagonal().tolist()
    pairs = confusions(labels, predicted)
    assert {(i, j): n for i, j, n in pairs} == {
        (i, j): n for (i, j), n in np.ndenumerate(matrix) if n and i != j
    }
    assert [n for *_, n in pairs] == sorted((n for *_, n in pairs), reverse=True)


def test_recall_and_precision_are_none_without_images_or_predictions() -> None:
    assert (ClassCounts(images=4, predicted=5, right=3).recall,
            ClassCounts(images=4, predicted=5, right=3).precision) == (0.75, 0.6)  # fmt: skip
    assert ClassCounts(images=0, predicted=2, right=0).recall is None
    assert ClassCounts(images=2, predicted=0, right=0).precision is None


def test_mistakes_are_all_the_wrong_images_by_confidence() -> None:
    labels, predicted = np.array([0, 1, 1, 0, 1]), np.array([0, 0, 0, 1, 0])
    confidence = np.array([0.99, 0.5, 0.8, 0.8, 0.9], dtype=np.float32)
    assert confident_mistakes(labels, predicted, confidence) == [4, 2, 3, 1]


def test_a_threshold_answers_the_confident_images_that_are_not_rejected() -> None:
    confidence = np.array([0.9, 0.6, 0.7, 0.95], dtype=np.float32)
    right = np.array([True, True, False, True])
    rejected = np.array([False, False, False, True])
    found = answered_at(0.7, confidence, right, rejected)
    assert (found.images, found.right) == (2, 1)  # 0.7 is not below 0.7
    assert found.accuracy == 0.5
    assert answered_at(0.99, confidence, right, rejected).accuracy is None
    everything = answered_at(0.0, confidence, right, np.zeros(4, dtype=bool))
    assert everything.accuracy == 0.75
    assert math.isclose(everything.threshold, 0.0)
