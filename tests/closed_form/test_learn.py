"""Learned class vectors: what is returned is what was learned, at every width."""

import numpy as np
import pytest

from prompt_serve.closed_form.cross_validation import cross_entropy
from prompt_serve.closed_form.learn import (
    LearnedClasses,
    first_that_fits,
    learn_classes,
    stored_bytes,
)
from prompt_serve.errors import ConfigInvalid
from prompt_serve.scoring import class_logits
from prompt_serve.types import DoubleArray, FloatArray, IntArray
from tests.closed_form.test_discriminant import clusters

SCALE = 30.0


def logits_of(learned: LearnedClasses, features: FloatArray) -> DoubleArray:
    """Calibrated logits as the service computes them."""
    classes, _ = learned.classes.class_features()
    return class_logits(features, classes, SCALE).astype(np.float64) / learned.temperature


@pytest.fixture
def task(rng: np.random.Generator) -> tuple[FloatArray, IntArray, FloatArray, IntArray]:
    features, labels = clusters(rng, classes=6, per_class=80, width=64, spread=1.0)
    train = np.arange(len(labels)) % 2 == 0
    return features[train], labels[train], features[~train], labels[~train]


@pytest.mark.parametrize(("bits", "accuracy"), [(1, 0.75), (2, 0.85), (4, 0.88), (8, 0.88)])
def test_few_bits_cost_little(
    task: tuple[FloatArray, IntArray, FloatArray, IntArray], bits: int, accuracy: float
) -> None:
    features, labels, test_features, test_labels = task
    learned = learn_classes(features, labels, 6, logit_scale=SCALE, bits=bits)
    logits = logits_of(learned, test_features)
    assert (logits.argmax(axis=1) == test_labels).mean() > accuracy


def test_out_of_fold_scores_foretell_unseen_images(
    task: tuple[FloatArray, IntArray, FloatArray, IntArray],
) -> None:
    features, labels, test_features, test_labels = task
    learned = learn_classes(features, labels, 6, logit_scale=SCALE, bits=16)
    held = learned.out_of_fold
    assert held is not None
    test_loss = cross_entropy(logits_of(learned, test_features), test_labels).mean()
    assert cross_entropy(held.logits, held.labels).mean() == pytest.approx(test_loss, abs=0.1)


def test_out_of_fold_scores_show_what_rounding_costs(
    task: tuple[FloatArray, IntArray, FloatArray, IntArray],
) -> None:
    features, labels, *_ = task

    def loss(bits: int) -> float:
        held = learn_classes(features, labels, 6, logit_scale=SCALE, bits=bits).out_of_fold
        assert held is not None
        return float(cross_entropy(held.logits, held.labels).mean())

    assert loss(1) > loss(2) > loss(4) > loss(16)
    assert loss(16) == pytest.approx(loss(8), abs=0.01)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("n_classes", "width"), [(2, 16), (6, 64), (5, 24), (90, 48), (200, 64)])
def test_the_size_is_known_before_learning(
    rng: np.random.Generator, bits: int, n_classes: int, width: int
) -> None:
    """One sketch of each kind: a mean per class, and one mean where these take over a kilobyte."""
    features, labels = clusters(rng, classes=n_classes, per_class=2, width=width, spread=1.0)
    learned = learn_classes(features, labels, n_classes, logit_scale=SCALE, bits=bits)
    shape = (n_classes, width)
    classes = sum(tensor.nbytes for tensor in learned.classes.tensors().values())
    sketch = sum(tensor.nbytes for tensor in learned.sketch.tensors().values())
    assert stored_bytes(shape, bits, sketch=False) == classes
    assert stored_bytes(shape, bits) == classes + sketch
    assert first_that_fits([bits, 1], shape, classes + sketch) == bits
    assert first_that_fits([bits], shape, classes + sketch - 1) is None


def test_the_same_seed_gives_the_same_codes(
    task: tuple[FloatArray, IntArray, FloatArray, IntArray],
) -> None:
    features, labels, *_ = task
    first, second = (
        learn_classes(features, labels, 6, logit_scale=SCALE, bits=4, seed=3) for _ in range(2)
    )
    assert first.classes.scales.tobytes() == second.classes.scales.tobytes()
    assert first.temperature == second.temperature
    assert first.unlike_below == second.unlike_below


def test_one_image_per_class_is_classified_by_the_nearest(rng: np.random.Generator) -> None:
    features, labels = clusters(rng, classes=5, per_class=2, width=32, spread=0.2)
    learned = learn_classes(features[::2], labels[::2], 5, logit_scale=SCALE)
    assert learned.out_of_fold is None
    assert (logits_of(learned, features[1::2]).argmax(axis=1) == labels[1::2]).all()


@pytest.mark.parametrize(
    ("labels", "n_classes", "reason"),
    [([0, 0, 0], 1, "one class only"), ([0, 0, 2], 3, r"Classes \[1\] have no images")],
)
def test_classes_that_cannot_be_told_apart_are_refused(
    rng: np.random.Generator, labels: list[int], n_classes: int, reason: str
) -> None:
    features, _ = clusters(rng, classes=3, per_class=1, width=8)
    with pytest.raises(ConfigInvalid, match=reason):
        learn_classes(features, np.array(labels), n_classes, logit_scale=SCALE)
