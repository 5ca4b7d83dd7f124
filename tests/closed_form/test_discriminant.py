"""The discriminant against the textbook formula, written out with an explicit inverse."""

import numpy as np
import pytest

from prompt_serve.closed_form.discriminant import class_statistics, discriminant_vectors
from prompt_serve.scoring import unit
from prompt_serve.types import FloatArray, IntArray


def clusters(
    rng: np.random.Generator, *, classes: int, per_class: int, width: int, spread: float = 0.3
) -> tuple[FloatArray, IntArray]:
    """Unit features around random centers, sorted by class."""
    centers = rng.normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), per_class)
    noise = rng.normal(size=(len(labels), width)) @ np.diag(np.linspace(0.1, 2.0, width))
    return unit((centers[labels] + spread * noise).astype(np.float32)), labels


@pytest.mark.parametrize("shrinkage", [0.05, 0.5, 1.0])
def test_scores_are_those_of_gaussians_with_one_shrunk_covariance(
    rng: np.random.Generator, shrinkage: float
) -> None:
    features, labels = clusters(rng, classes=4, per_class=20, width=12)
    wide = features.astype(np.float64)

    means = np.stack([wide[labels == c].mean(axis=0) for c in range(4)])
    within = np.zeros((12, 12))
    for x, c in zip(wide, labels, strict=True):
        within += np.outer(x - means[c], x - means[c]) / len(wide)
    shrunk = (1 - shrinkage) * within + shrinkage * np.trace(within) / 12 * np.eye(12)
    weights = means @ np.linalg.inv(shrunk)
    second = wide.T @ wide / len(wide)
    along = np.linalg.solve(second + 0.02 * np.trace(second) / 12 * np.eye(12), wide.mean(axis=0))
    bias = np.array([-0.5 * m @ np.linalg.inv(shrunk) @ m for m in means])
    expected = weights + np.outer(bias - bias.mean(), along)
    expected -= expected.mean(axis=0)

    vectors = discriminant_vectors(class_statistics(features, labels, 4), shrinkage)

    np.testing.assert_allclose(vectors, expected, rtol=1e-8, atol=1e-8)


def test_full_shrinkage_chooses_the_nearest_mean(rng: np.random.Generator) -> None:
    features, labels = clusters(rng, classes=5, per_class=30, width=64, spread=0.6)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(5)])
    nearest = np.linalg.norm(features[:, None] - means, axis=-1).argmin(axis=1)

    vectors = discriminant_vectors(class_statistics(features, labels, 5), 1.0)

    # The bias is folded along one direction, which is exact only on average.
    assert ((features @ vectors.T).argmax(axis=1) == nearest).mean() > 0.97


def test_one_image_per_class_gives_finite_vectors(rng: np.random.Generator) -> None:
    features, labels = clusters(rng, classes=6, per_class=1, width=10)
    vectors = discriminant_vectors(class_statistics(features, labels, 6), 1.0)
    assert np.isfinite(vectors).all()
    assert ((features @ vectors.T).argmax(axis=1) == labels).all()


def test_a_common_covariance_is_worth_more_than_means_alone(rng: np.random.Generator) -> None:
    features, labels = clusters(rng, classes=6, per_class=60, width=32, spread=1.5)
    train = np.arange(len(labels)) % 2 == 0
    statistics = class_statistics(features[train], labels[train], 6)

    def accuracy(shrinkage: float) -> float:
        scores = features[~train] @ discriminant_vectors(statistics, shrinkage).T
        return float((scores.argmax(axis=1) == labels[~train]).mean())

    assert accuracy(0.1) > accuracy(1.0) + 0.02
