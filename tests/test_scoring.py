"""Scores against sums written out by hand."""

import math

import numpy as np
import pytest

from prompt_serve.scoring import BestClasses, best_classes, class_logits, is_unknown, softmax, unit


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
