"""Scores against sums written out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from prompt_serve.scoring import (
    BestClasses,
    LabelScores,
    best_classes,
    best_labels,
    class_logits,
    is_unknown,
    is_unlike,
    sigmoid,
    softmax,
    unit,
)


def best_of(logits: list[float], *, k: int, temperature: float = 1.0) -> BestClasses:
    """The best classes of one image whose logits are given."""
    image, classes = np.ones((1, 1), np.float32), np.array(logits, np.float32)[:, np.newaxis]
    (best,) = best_classes(image, [classes], 1.0, [temperature], k)
    return best


def labels(best: BestClasses) -> list[int]:
    return [int(label) for label in best.labels[0]]


def test_logits_are_scaled_cosines(rng: np.random.Generator) -> None:
    image = unit(rng.standard_normal((3, 8)).astype(np.float32))
    classes = unit(rng.standard_normal((5, 8)).astype(np.float32))

    logits = class_logits(image, classes, 100.0)

    for b, c in np.ndindex(logits.shape):
        cosine = sum(float(i) * float(t) for i, t in zip(image[b], classes[c], strict=True))
        # float32 loses up to 1.7e-5 here; a wrong scale or a transpose is off by whole units.
        assert logits[b, c] == pytest.approx(100.0 * cosine, abs=1e-4)


def test_softmax_of_huge_logits_does_not_overflow() -> None:
    probabilities = softmax(np.array([1e4, 1e4 - math.log(3)], dtype=np.float32))

    # float32 keeps 1e4 - log(3) to about 5e-4.
    assert probabilities == pytest.approx([0.75, 0.25], abs=1e-3)


def test_the_best_classes_come_first_and_ties_keep_their_order() -> None:
    best = best_of([1.0, 3.0, 2.0, 3.0], k=3)

    assert labels(best) == [1, 3, 2]
    total = sum(math.exp(x) for x in (1.0, 3.0, 2.0, 3.0))
    assert best.probabilities[0, 0] == pytest.approx(math.exp(3.0) / total, rel=1e-5)


def test_a_tie_at_the_edge_goes_to_the_earlier_class() -> None:
    assert labels(best_of([0.0] * 4, k=2)) == [0, 1]


def test_requesting_more_classes_than_there_are_gives_all() -> None:
    assert labels(best_of([0.0, 0.0], k=5)) == [0, 1]


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.5])
def test_a_temperature_changes_probabilities_alone(temperature: float) -> None:
    best = best_of([1.0, 3.0, 2.5], k=3, temperature=temperature)

    weights = [math.exp(x / temperature) for x in (3.0, 2.5, 1.0)]
    assert labels(best) == [1, 2, 0]
    assert best.logits[0].tolist() == [3.0, 2.5, 1.0]
    for probability, weight in zip(best.probabilities[0], weights, strict=True):
        assert probability == pytest.approx(weight / sum(weights), rel=1e-5)


def test_the_threshold_itself_is_known_and_zero_knows_everything() -> None:
    # 0.9 in float32 is less than 0.9: the comparison must not notice.
    probability = float(np.float32(0.9))

    assert not is_unknown(probability, 0.9)
    assert is_unknown(probability, 0.9001)
    assert not is_unknown(0.0, 0.0)


@pytest.mark.parametrize("k", [1, 5, 20, 500], ids=lambda k: f"top-{k}")
def test_many_tasks_at_once_give_what_each_gives_alone(rng: np.random.Generator, k: int) -> None:
    sizes = [1, 2, 3, 7, 8, 9, 130, 64, 1, 7]
    tasks = [unit(rng.standard_normal((size, 16)).astype(np.float32)) for size in sizes]
    tasks[3] = np.repeat(tasks[3][:1], 7, axis=0)  # all alike: ties
    temperatures = [0.5, 1.0, 2.0, 1.0, 0.1, 1.0, 3.0, 1.0, 9.0, 1.0]
    images = unit(rng.standard_normal((6, 16)).astype(np.float32))

    together = best_classes(images, tasks, 20.0, temperatures, k)

    for features, temperature, found in zip(tasks, temperatures, together, strict=True):
        logits = class_logits(images, features, 20.0)
        for image, row in enumerate(logits):
            expected = np.argsort(-row, kind="stable")[:k].tolist()
            assert found.labels[image].tolist() == expected
            assert found.logits[image].tolist() == row[expected].tolist()
            # The sum over the classes is taken in another order.
            assert found.probabilities[image] == pytest.approx(
                softmax(row / np.float32(temperature))[expected], rel=1e-5, abs=1e-30
            )


SHAPES = [(5,), (3, 5), (2, 3, 5), (1, 1), (4, 1, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_is_along_the_last_axis(
    shape: tuple[int, ...], dtype: type[np.floating], rng: np.random.Generator
) -> None:
    # Rows far apart: with the largest logit of all rows, the others would be lost.
    rows = 1e4 * np.arange(math.prod(shape[:-1])).reshape(*shape[:-1], 1)
    logits = (rng.normal(size=shape) + rows).astype(dtype)

    found = softmax(logits)

    assert found.dtype == np.float32
    assert found.shape == shape
    for row, probabilities in zip(
        logits.reshape(-1, shape[-1]), found.reshape(-1, shape[-1]), strict=True
    ):
        weights = [math.exp(float(x) - float(max(row))) for x in row]
        assert probabilities == pytest.approx([w / sum(weights) for w in weights], abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_unit_scales_every_row_of_the_last_axis(
    shape: tuple[int, ...], scale: float, rng: np.random.Generator
) -> None:
    features: Any = scale * rng.normal(size=shape)  # float64

    found = unit(features)

    assert found.dtype == np.float32
    lengths = np.sqrt((features**2).sum(axis=-1, keepdims=True))
    assert found == pytest.approx(features / lengths, abs=1e-6)


def test_unit_leaves_zeros() -> None:
    assert unit(np.zeros((2, 3), np.float32)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("similarity", "unlike"), [(None, False), (0.3, False), (0.31, False), (0.29, True)]
)
def test_an_image_is_unlike_below_the_threshold(similarity: float | None, unlike: bool) -> None:
    assert is_unlike(similarity, 0.3) is unlike


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_is_float32_and_does_not_overflow(dtype: type[np.floating]) -> None:
    log_odds = np.array([-1e4, -2.5, 0.0, 0.75, 1e4], dtype)

    found = sigmoid(log_odds)

    assert found.dtype == np.float32
    expected = [0.0, *(1 / (1 + math.exp(-x)) for x in (-2.5, 0.0, 0.75)), 1.0]
    assert found == pytest.approx(expected, abs=1e-7)


def label_scores(slopes: list[float], offsets: list[float], thresholds: list[float]) -> LabelScores:
    return LabelScores(
        slopes=np.array(slopes, np.float32),
        offsets=np.array(offsets, np.float32),
        thresholds=np.array(thresholds, np.float32),
    )


def test_labels_have_probabilities_of_their_own() -> None:
    scores = label_scores([4.0, 8.0, 1.0], [-2.0, -12.0, 0.5], [0.5, 0.5, 0.5])
    cosines = np.array([[0.6, 0.8, -1.0], [0.0, 1.0, 0.25]], np.float32)

    for row, found in zip(cosines, scores.probabilities(cosines), strict=True):
        for label, (slope, offset) in enumerate(((4.0, -2.0), (8.0, -12.0), (1.0, 0.5))):
            expected = 1 / (1 + math.exp(-(slope * row[label] + offset)))
            assert found[label] == pytest.approx(expected, abs=1e-6)
    assert scores.nbytes == 36


@pytest.mark.parametrize("n_labels", [3, 40])  # few are sorted in one way, many in another
@pytest.mark.parametrize("k", [1, 2, 30])
def test_the_best_labels_of_each_image_against_their_definition(
    n_labels: int, k: int, rng: np.random.Generator
) -> None:
    images = unit(rng.normal(size=(4, 6)).astype(np.float32))
    classes = unit(rng.normal(size=(n_labels, 6)).astype(np.float32))
    scores = LabelScores(
        slopes=rng.uniform(1, 9, n_labels).astype(np.float32),
        offsets=rng.normal(size=n_labels).astype(np.float32),
        thresholds=rng.uniform(0.2, 0.8, n_labels).astype(np.float32),
    )

    found = best_labels(images, classes, scores, 50.0, k)

    assert found.accepted is not None
    for image in range(4):
        cosines = [float(images[image] @ classes[label]) for label in range(n_labels)]
        odds = [
            float(scores.slopes[label]) * cosines[label] + float(scores.offsets[label])
            for label in range(n_labels)
        ]
        order = sorted(range(n_labels), key=lambda label: -odds[label])
        probability = [1 / (1 + math.exp(-x)) for x in odds]
        assert found.labels[image].tolist() == order[:k]
        assert found.logits[image] == pytest.approx([50 * cosines[c] for c in order[:k]], abs=1e-4)
        assert found.probabilities[image] == pytest.approx(
            [probability[c] for c in order[:k]], abs=1e-5
        )
        own = [c for c in order if probability[c] >= float(scores.thresholds[c])]
        assert found.accepted[image].tolist() == own


@pytest.mark.parametrize("n_labels", [2, 17, 100])
def test_equal_labels_keep_their_order_and_reach_their_threshold(n_labels: int) -> None:
    """Labels that are equally probable, in three groups, each exactly at its threshold."""
    group = np.arange(n_labels) % 3
    classes = np.ones((n_labels, 1), np.float32)
    offsets = np.array([0.0, 1.0, -1.0], np.float32)[group]
    scores = LabelScores(
        slopes=np.zeros(n_labels, np.float32), offsets=offsets, thresholds=sigmoid(offsets)
    )

    found = best_labels(np.ones((1, 1), np.float32), classes, scores, 1.0, n_labels)

    order = sorted(range(n_labels), key=lambda label: (-offsets[label], label))
    assert found.labels[0].tolist() == order
    assert found.accepted is not None
    assert found.accepted[0].tolist() == order


@pytest.mark.parametrize("n_classes", [1, 2, 3, 16, 17, 40, 100])
@pytest.mark.parametrize("k", [1, 16, 17, 100])
def test_equal_classes_keep_their_order_whatever_their_number(n_classes: int, k: int) -> None:
    logits = [float(c % 3) for c in range(n_classes)]

    best = best_of(logits, k=k)

    order = sorted(range(n_classes), key=lambda c: (-logits[c], c))
    assert labels(best) == order[:k]
    assert best.logits.dtype == best.probabilities.dtype == np.float32
    total = sum(map(math.exp, logits))
    expected = [math.exp(logits[c]) / total for c in order[:k]]
    assert best.probabilities[0] == pytest.approx(expected, rel=1e-5)
