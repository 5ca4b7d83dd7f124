"""Cross-validation: its scores are of unseen images, and its choices follow the data."""

import numpy as np
import pytest

from prompt_serve.closed_form.cross_validation import cross_entropy, cross_validate
from prompt_serve.closed_form.discriminant import class_statistics, discriminant_vectors
from prompt_serve.scoring import unit
from tests.closed_form.test_discriminant import clusters


def test_scores_come_from_vectors_that_never_saw_the_image(rng: np.random.Generator) -> None:
    features, labels = clusters(rng, classes=3, per_class=10, width=16)
    settings = cross_validate(features, labels, 3, seed=7)
    held = settings.out_of_fold
    assert held is not None
    for fold in range(5):
        rows = held.folds == fold
        others = np.ones(len(labels), dtype=bool)
        others[held.images[rows]] = False
        statistics = class_statistics(features[others], labels[others], 3)
        vectors = discriminant_vectors(statistics, settings.shrinkage)
        expected = features[held.images[rows]] @ vectors.T / settings.temperature
        np.testing.assert_allclose(held.logits[rows], expected, rtol=1e-6)


def test_labels_that_mean_nothing_are_not_learned(rng: np.random.Generator) -> None:
    features, _ = clusters(rng, classes=1, per_class=200, width=32, spread=1.0)
    labels = rng.integers(0, 4, size=200)
    held = cross_validate(features, labels, 4, seed=1).out_of_fold
    assert held is not None
    assert (held.logits.argmax(axis=1) == held.labels).mean() < 0.4
    # Calibrated: no better than even odds, and not confidently wrong.
    assert cross_entropy(held.logits, held.labels).mean() == pytest.approx(np.log(4), abs=0.1)


def test_text_that_helps_gets_a_weight_and_text_that_does_not_gets_none(
    rng: np.random.Generator,
) -> None:
    features, labels = clusters(rng, classes=5, per_class=40, width=24, spread=1.2)
    few = np.concatenate([np.flatnonzero(labels == c)[:3] for c in range(5)])
    truth = unit(np.stack([features[labels == c].mean(axis=0) for c in range(5)]))

    helpful = cross_validate(features[few], labels[few], 5, seed=0, text_features=truth)
    useless = cross_validate(features, labels, 5, seed=0, text_features=np.roll(truth, 1, axis=0))

    assert helpful.text_factor > 0.0
    assert useless.text_factor == 0.0


def test_one_image_per_class_leaves_nothing_to_validate(rng: np.random.Generator) -> None:
    features, labels = clusters(rng, classes=4, per_class=1, width=8)
    settings = cross_validate(features, labels, 4, seed=0)
    assert settings.out_of_fold is None
    assert settings.shrinkage == 1.0
