"""Temperature, threshold and calibration error against their definitions."""

import numpy as np
import pytest

from prompt_serve.calibration import (
    TEMPERATURES,
    calibrate,
    expected_calibration_error,
    fit_temperature,
)
from prompt_serve.scoring import softmax
from prompt_serve.types import FloatArray, IntArray


def noisy(rng: np.random.Generator, n: int = 200, c: int = 5) -> tuple[FloatArray, IntArray]:
    labels = rng.integers(0, c, size=n)
    logits = rng.normal(size=(n, c)).astype(np.float32)
    logits[np.arange(n), labels] += 1.0
    return logits, labels


def loss(logits: FloatArray, labels: IntArray, temperature: float) -> float:
    wide = logits.astype(np.float64) / temperature
    wide -= wide.max(axis=1, keepdims=True)
    own = wide[np.arange(len(labels)), labels]
    return float((np.log(np.exp(wide).sum(axis=1)) - own).mean())


def test_the_temperature_minimizes_the_cross_entropy(rng: np.random.Generator) -> None:
    logits, labels = noisy(rng)
    grid = np.geomspace(*TEMPERATURES, 4_001)
    best = grid[int(np.argmin([loss(logits, labels, t) for t in grid]))]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(best, rel=2e-3)  # the grid's step is 0.15 %
    assert loss(logits, labels, found) <= loss(logits, labels, 1.0)


@pytest.mark.parametrize("k", [0.5, 3.0, 7.0])
def test_logits_times_k_give_k_times_the_temperature(rng: np.random.Generator, k: float) -> None:
    logits, labels = noisy(rng)
    scaled = fit_temperature(np.float32(k) * logits, labels)
    assert scaled == pytest.approx(k * fit_temperature(logits, labels), rel=1e-5)


def test_the_temperature_leaves_accuracy_unchanged(rng: np.random.Generator) -> None:
    logits, labels = noisy(rng)
    temperature = np.float32(calibrate(logits, labels).temperature)
    assert (softmax(logits / temperature).argmax(1) == logits.argmax(1)).all()


def test_cases_without_a_minimum_give_a_bound(rng: np.random.Generator) -> None:
    labels = np.array([0, 1, 2])
    right = (10 * np.eye(3)).astype(np.float32)
    assert fit_temperature(right, labels) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(right[:1], labels[:1]) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    wrong = np.roll(right, 1, axis=1)
    assert fit_temperature(wrong, labels) == pytest.approx(TEMPERATURES[1], rel=1e-3)
    # Of equal logits the temperature stays 1.
    assert fit_temperature(np.zeros((4, 1), np.float32), np.zeros(4, np.int64)) == 1.0
    assert fit_temperature(np.ones((4, 3), np.float32), np.array([0, 1, 2, 0])) == 1.0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.9])
def test_at_most_the_requested_share_is_unknown(rng: np.random.Generator, share: float) -> None:
    logits, labels = noisy(rng)
    found = calibrate(logits, labels, unknown_share=share)
    confidence = softmax(logits / np.float32(found.temperature)).max(axis=1)
    unknown = float((confidence < found.unknown_below).mean())
    assert share - 1 / len(labels) - 1e-9 <= unknown <= share
    assert 0.0 <= found.unknown_below < 1.0


def test_a_threshold_of_sure_answers_stays_below_one() -> None:
    logits = (100 * np.eye(3)).astype(np.float32)
    assert calibrate(logits, np.arange(3), unknown_share=0.5).unknown_below < 1.0


def test_calibration_error_by_hand() -> None:
    """Bins of 1/15: 0.55 and 0.58 share [8/15, 9/15), 1.0 is in the last."""
    probabilities = np.array([[0.55, 0.45], [0.42, 0.58], [1.0, 0.0], [0.97, 0.03]], np.float32)
    labels = np.array([0, 0, 0, 1])
    by_hand = 0.5 * abs(0.5 - 0.565) + 0.5 * abs(0.5 - 0.985)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(by_hand, abs=1e-6)
