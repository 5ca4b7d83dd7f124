"""The adapters against closed forms and formulas written out."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from prompt_serve.research import adapters
from prompt_serve.research.adapters import (
    clip_adapter,
    evaluate_adapter,
    linear_probe,
    logistic_regression,
    tip_adapter,
    tip_adapter_f,
)
from prompt_serve.scoring import unit
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.types import FloatArray

C, E = 4, 32


def clusters(seed: int, n: int, k: int, spread: float = 0.5) -> FeatureSet:
    """Four clusters around centers that do not depend on the seed."""
    centers = np.random.default_rng(99).normal(size=(C, 1, E))
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % C
    features = centers[labels] + spread * rng.normal(size=(n, k, E))
    return FeatureSet(features=unit(features.astype(np.float32)), labels=labels)


@pytest.fixture
def classes() -> FloatArray:
    """Class features that say something, but not much."""
    centers = np.random.default_rng(99).normal(size=(C, E))
    noise = np.random.default_rng(5).normal(size=(C, E))
    return unit((centers + 3 * noise).astype(np.float32))


def test_logistic_regression_of_two_points_has_its_known_solution() -> None:
    features, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    decay = 0.3
    weights = logistic_regression(features, labels, torch.zeros(2, 2), decay)
    # By symmetry w_1 = -w_0 = w, no bias; minimize log(1 + e^(-2w)) + d w^2: slope zero.
    low, high = 0.0, 10.0
    for _ in range(100):
        w = (low + high) / 2
        slope = -2 / (1 + np.exp(2 * w)) + 2 * decay * w
        low, high = (w, high) if slope < 0 else (low, w)
    assert weights[:, 0].tolist() == pytest.approx([-w, w], abs=1e-5)
    assert weights[:, 1].tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_logistic_regression_ends_where_the_gradient_is_zero() -> None:
    train = clusters(1, 40, 1)
    weights = logistic_regression(
        torch.from_numpy(train.plain), torch.from_numpy(train.labels), torch.zeros(C, E + 1), 1e-3
    ).numpy()
    logits = train.plain @ weights[:, :-1].T + weights[:, -1]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    error = p - np.eye(C)[train.labels]
    gradient = error.T @ train.plain / len(train) + 1e-3 * weights[:, :-1]
    assert np.abs(gradient).max() < 1e-5
    assert np.abs(error.mean(0)).max() < 1e-5


def test_the_penalty_is_the_one_that_validates_best() -> None:
    train, val = clusters(1, 32, 2), clusters(2, 40, 1)
    best = linear_probe(train, val, C)
    accuracy = evaluate_adapter(best, val).accuracy
    for decay in adapters.WEIGHT_DECAYS[::4]:
        alone = linear_probe(train, val, C, decays=[decay])
        # Each starts elsewhere, and ends at the same minimum up to the solver's tolerance.
        assert evaluate_adapter(alone, val).accuracy <= accuracy + 1 / len(val)


def test_tip_adapter_is_its_formula(classes: FloatArray) -> None:
    train, val, test = clusters(1, 16, 3), clusters(2, 40, 1), clusters(3, 8, 1)
    adapter = tip_adapter(train, val, classes, 20.0)
    alpha, beta = adapter.settings["alpha"], adapter.settings["beta"]
    logits = adapter.logits(test.plain)
    for i, f in enumerate(test.plain.astype(np.float64)):
        expected = 20.0 * classes.astype(np.float64) @ f
        for views, label in zip(train.features.astype(np.float64), train.labels, strict=True):
            key = views.mean(0) / np.linalg.norm(views.mean(0))
            expected[label] += alpha * np.exp(-beta * (1 - f @ key))
        assert logits[i] == pytest.approx(expected, rel=1e-4, abs=1e-3)


FITS: dict[str, Callable[..., adapters.Adapter]] = {
    "linear": lambda train, val, classes, scale: linear_probe(train, val, len(classes)),
    "clip-adapter": clip_adapter,
    "tip-adapter": tip_adapter,
    "tip-adapter-f": tip_adapter_f,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n == "clip-adapter" else ()) for n in FITS]
)
def test_each_learns_and_repeats(name: str, classes: FloatArray) -> None:
    train, val, test = clusters(1, 128, 3, 1.0), clusters(2, 16, 1, 1.0), clusters(3, 100, 1, 1.0)
    first, second = (FITS[name](train, val, classes, 20.0) for _ in range(2))
    assert (first.logits(test.plain) == second.logits(test.plain)).all()
    zero_shot = float(((test.plain @ classes.T).argmax(-1) == test.labels).mean())
    accuracy = evaluate_adapter(first, test).accuracy
    print(f"{name}: {accuracy:.1%}, zero-shot {zero_shot:.1%}, {dict(first.settings)}")
    assert accuracy > zero_shot + 0.1


def test_no_head_can_see_test_images() -> None:
    allowed = {"train", "val", "n_classes", "decays", "class_features", "logit_scale"}
    allowed |= {"seed", "ratios", "epochs"}
    fits: tuple[Callable[..., Any], ...] = (linear_probe, clip_adapter, tip_adapter, tip_adapter_f)
    for fit in fits:
        assert set(inspect.signature(fit).parameters) <= allowed
