"""Folds: every class spread evenly, nothing held out that could not be known."""

import numpy as np
import pytest

from prompt_serve.closed_form.folds import NEVER_HELD_OUT, stratified_folds


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_spread_evenly(seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2], [10, 7, 23]))
    folds = stratified_folds(labels, seed=seed)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_the_only_image_of_a_class_is_never_held_out() -> None:
    folds = stratified_folds(np.array([0, 1, 1, 0, 2, 0]), seed=1)
    assert folds[4] == NEVER_HELD_OUT
    assert (folds[[0, 1, 2, 3, 5]] != NEVER_HELD_OUT).all()


def test_no_fold_leaves_a_class_without_images() -> None:
    labels = np.repeat(np.arange(40), 2)
    folds = stratified_folds(labels, seed=3)
    for fold in range(5):
        assert set(labels[folds != fold]) == set(range(40))


def test_folds_follow_the_seed() -> None:
    labels = np.repeat([0, 1], 20)
    np.testing.assert_array_equal(
        stratified_folds(labels, seed=4), stratified_folds(labels, seed=4)
    )
    assert (stratified_folds(labels, seed=4) != stratified_folds(labels, seed=5)).any()
