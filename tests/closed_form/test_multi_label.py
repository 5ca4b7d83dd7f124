"""Label vectors: as good as a probe, calibrated, at every width, and with very few images."""

import numpy as np
import pytest

from prompt_serve.closed_form.label_calibration import best_threshold, fit_sigmoid
from prompt_serve.closed_form.label_folds import label_folds
from prompt_serve.closed_form.multi_label import LearnedLabels, learn_labels
from prompt_serve.errors import ConfigInvalid
from prompt_serve.label_measures import evaluate_labels, mean_average_precision
from prompt_serve.types import BoolArray, DoubleArray, FloatArray, IntArray

WIDTH, LABELS = 48, 6


def images(seed: int, n: int, noise: float = 1.5) -> tuple[FloatArray, BoolArray]:
    """Features that add up a direction per label, a common one, and noise."""
    directions = np.random.default_rng(0).normal(size=(LABELS + 1, WIDTH))
    rng = np.random.default_rng(seed)
    labels = rng.random((n, LABELS)) < 0.3
    features = labels @ directions[1:] + 3 * directions[0] + noise * rng.normal(size=(n, WIDTH))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), labels


def answers(learned: LearnedLabels, features: FloatArray) -> FloatArray:
    classes, scores = learned.vectors.class_features()
    return scores.probabilities(features @ classes.T)


def probe_scores(
    features: FloatArray, labels: BoolArray, test: FloatArray, penalty: float
) -> DoubleArray:
    """Scores of one logistic regression per label, by gradient descent on whitened features."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    x = np.c_[(features - mean) / deviation, np.ones(len(features))].astype(np.float64)
    weights = np.zeros((x.shape[1], labels.shape[1]))
    for _ in range(2000):
        shares = 1 / (1 + np.exp(-x @ weights))
        weights -= 0.2 * (x.T @ (shares - labels) + penalty * weights) / len(x)
    scores: DoubleArray = np.c_[(test - mean) / deviation, np.ones(len(test))] @ weights
    return scores


@pytest.mark.parametrize("n", [60, 400])
def test_as_precise_as_the_best_of_several_probes(n: int) -> None:
    features, labels = images(1, n)
    test, test_labels = images(2, 1000)
    learned = learn_labels(features, labels, bits=8)

    found = mean_average_precision(answers(learned, test), test_labels)
    probes = [
        mean_average_precision(probe_scores(features, labels, test, penalty), test_labels) or 0.0
        for penalty in (1.0, 10.0, 100.0)
    ]

    assert found is not None
    assert found > max(probes) - 0.01, (found, probes)


@pytest.mark.parametrize(("bits", "least"), [(1, 0.85), (2, 0.9), (4, 0.92), (8, 0.92), (16, 0.92)])
def test_few_bits_cost_little(bits: int, least: float) -> None:
    test, test_labels = images(2, 500)
    learned = learn_labels(*images(1, 400), bits=bits)
    found = evaluate_labels(
        answers(learned, test), test_labels, learned.vectors.thresholds.astype(np.float32)
    )
    assert (found.mean_average_precision or 0) > least
    assert found.micro_f1 > least - 0.12


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_are_frequencies_and_out_of_fold_foretells_new_images(seed: int) -> None:
    test, test_labels = images(100 + seed, 2000)
    learned = learn_labels(*images(seed, 500), bits=4)
    probabilities = answers(learned, test)
    held = learned.out_of_fold
    # Half of the pairs that are given even odds, and so on; sampling errors are below 0.05.
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9)):
        inside = (probabilities >= low) & (probabilities < high)
        assert test_labels[inside].mean() == pytest.approx(probabilities[inside].mean(), abs=0.1)
    expected = mean_average_precision(held.probabilities, held.labels)
    assert mean_average_precision(probabilities, test_labels) == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("positives", [1, 2, 3, 4, 5])
def test_a_label_of_few_images_is_found(positives: int) -> None:
    features, labels = images(3, 300, noise=0.5)
    kept = ~labels[:, 0]
    kept[np.flatnonzero(labels[:, 0])[:positives]] = True
    learned = learn_labels(features[kept], labels[kept])
    test, test_labels = images(4, 600, noise=0.5)

    found = evaluate_labels(
        answers(learned, test), test_labels, learned.vectors.thresholds.astype(np.float32)
    ).labels[0]

    # Of test images, 30 % have the label: chance has an average precision of 0.3.
    assert (found.average_precision or 0) > 0.6
    assert found.right / max(1, found.given) > 0.6


def test_one_image_per_label_and_one_label_in_all() -> None:
    features = np.eye(4, 16, dtype=np.float32)
    for labels in (np.eye(4, 3, dtype=bool), np.eye(4, 1, dtype=bool), np.eye(2, 2, dtype=bool)):
        own = features[: len(labels)]
        learned = learn_labels(own, labels)
        assert (answers(learned, own).argmax(axis=0) == np.arange(labels.shape[1])).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_same_seed_gives_the_same_bytes(bits: int) -> None:
    first, second = (learn_labels(*images(5, 80), bits=bits, seed=3) for _ in range(2))
    assert first.unlike_below == second.unlike_below
    for name in ("scales", "offsets", "thresholds"):
        own = getattr(first.vectors, name), getattr(second.vectors, name)
        assert own[0].tobytes() == own[1].tobytes()


@pytest.mark.parametrize(
    "labels", [np.zeros((4, 2)), np.ones((4, 2)), np.zeros((4, 0)), np.eye(4, 3) * [1, 0, 1]]
)
def test_labels_that_cannot_be_learned_are_refused(labels: DoubleArray) -> None:
    with pytest.raises(ConfigInvalid, match="on no image or on all"):
        learn_labels(np.eye(4, 8, dtype=np.float32), labels.astype(bool))


@pytest.mark.parametrize("seed", range(5))
def test_folds_spread_every_label_evenly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random((203, 12)) < np.linspace(0.02, 0.5, 12)
    folds = label_folds(labels, seed=seed, folds=5)

    def spread(assigned: IntArray) -> IntArray:
        counts = [labels[assigned == fold].sum(axis=0) for fold in range(5)]
        return np.asarray(np.ptp(counts, axis=0))  # (C,)

    # The rare labels, which go first, are even but for the remainder; overlaps cost the others.
    assert spread(folds)[:5].max() <= 2
    assert spread(folds).sum() < spread(rng.permutation(203) % 5).sum() / 2
    assert np.array_equal(folds, label_folds(labels, seed=seed, folds=5))


@pytest.mark.parametrize("seed", range(5))
def test_the_sigmoid_has_the_lowest_loss_of_a_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(300) < 0.3
    scores = rng.normal(size=300) + 1.5 * positive
    n_positive, n_negative = positive.sum(), (~positive).sum()
    targets = np.where(positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))

    def loss(slope: float, offset: float) -> float:
        shares = 1 / (1 + np.exp(-(slope * scores + offset)))
        return float(-(targets * np.log(shares) + (1 - targets) * np.log1p(-shares)).sum())

    found = fit_sigmoid(scores, positive)
    assert found is not None
    grid = [loss(s, o) for s in np.linspace(0.2, 4, 77) for o in np.linspace(-5, 1, 121)]
    assert loss(found.slope, found.offset) <= min(grid)


@pytest.mark.parametrize("seed", range(5))
def test_scores_that_say_nothing_give_no_sigmoid(seed: int) -> None:
    positive = np.random.default_rng(seed).random(50) < 0.3
    assert fit_sigmoid(np.ones(50), positive) is None
    assert fit_sigmoid(-positive.astype(np.float64), positive) is None


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_has_a_higher_f1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(60) < 0.3
    log_odds = np.round(rng.normal(size=60) + positive, 1)  # ties

    def f1(threshold: float) -> float:
        given = 1 / (1 + np.exp(-log_odds)) >= threshold
        return float(2 * (given & positive).sum() / (given.sum() + positive.sum()))

    found = best_threshold(log_odds, positive)
    assert f1(found) == pytest.approx(max(f1(t) for t in np.linspace(0.01, 0.99, 199)))
