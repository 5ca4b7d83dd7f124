"""Rows held against each other, with differences and p-values that can be counted by hand."""

import pytest

from prompt_serve.errors import ConfigInvalid
from prompt_serve.research.protocols.paired import compare_rows
from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import AVERAGE, CROSS_DATASET, HARMONIC
from tests.research.protocols.made_up import base_new, made_up

# New-class accuracies of two rows over three datasets and two seeds.
OURS = {"a": (0.60, 0.70), "b": (0.50, 0.50), "c": (0.40, 0.44)}
THEIRS = {"a": (0.50, 0.50), "b": (0.50, 0.52), "c": (0.30, 0.32)}


def rows() -> list[Result]:
    return [
        base_new(dataset, label, seed, 0.9, value)
        for label, values in (("DIP", OURS), ("CoOp", THEIRS))
        for dataset, own in values.items()
        for seed, value in enumerate(own, 1)
    ]


def test_the_difference_is_the_mean_over_datasets_with_wins_ties_and_losses() -> None:
    paired = compare_rows(rows(), "DIP", "CoOp", test_set="new")

    assert paired.difference == pytest.approx((0.15 - 0.01 + 0.11) / 3, abs=1e-12)
    assert (paired.pairs, paired.wins, paired.ties, paired.losses) == (6, 4, 1, 1)
    assert paired.datasets["b"] == pytest.approx(-0.01, abs=1e-12)


def test_p_of_three_datasets_is_counted_over_all_signs() -> None:
    """Ranks of |0.15|, |-0.01|, |0.11| are 3, 1, 2: the positive ones add up to 5.

    Of the 8 ways to set signs, 5 or 6 comes out in two and 0 or 1 in two.
    """
    paired = compare_rows(rows(), "DIP", "CoOp", test_set="new")

    assert paired.dataset_p == pytest.approx(4 / 8)


def test_the_other_way_round_is_the_mirror_image() -> None:
    ours = compare_rows(rows(), "DIP", "CoOp", test_set="new")
    theirs = compare_rows(rows(), "CoOp", "DIP", test_set="new")

    assert theirs.difference == pytest.approx(-ours.difference, abs=1e-12)
    assert (theirs.wins, theirs.losses) == (ours.losses, ours.wins)
    assert theirs.dataset_p == ours.dataset_p
    assert (theirs.low, theirs.high) == pytest.approx((-ours.high, -ours.low), abs=0.01)


def test_equal_rows_differ_by_nothing() -> None:
    paired = compare_rows(rows(), "DIP", "DIP", test_set="new")

    assert (paired.difference, paired.low, paired.high) == (0.0, 0.0, 0.0)
    assert (paired.ties, paired.dataset_p, paired.pair_p, paired.excludes_zero) == (
        6,
        1.0,
        1.0,
        False,
    )


def test_the_interval_of_one_difference_everywhere_is_that_difference() -> None:
    results = [
        base_new(dataset, label, seed, 0.9, 0.5 + gain)
        for label, gain in (("DIP", 0.03), ("CoOp", 0.0))
        for dataset in "abcdefghijk"
        for seed in (1, 2, 3)
    ]
    paired = compare_rows(results, "DIP", "CoOp", test_set="new")

    assert (paired.low, paired.high) == pytest.approx((0.03, 0.03), abs=1e-12)
    assert paired.excludes_zero
    # Eleven of one sign: 2 of 2^11 ways.
    assert paired.dataset_p == pytest.approx(2 / 2**11)
    assert paired.pair_p < paired.dataset_p


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Eleven datasets whose true gain is 0.02: the interval holds it in most of 60 draws."""
    import numpy as np

    rng = np.random.default_rng(5)
    held = 0
    for _ in range(60):
        results = []
        for dataset in "abcdefghijk":
            gain = 0.02 + rng.normal(0, 0.03)
            for seed in (1, 2, 3):
                results.append(base_new(dataset, "CoOp", seed, 0.9, 0.5))
                new = 0.5 + gain + rng.normal(0, 0.01)
                results.append(base_new(dataset, "DIP", seed, 0.9, new))
        paired = compare_rows(results, "DIP", "CoOp", test_set="new")
        held += paired.low <= 0.02 <= paired.high
    # 95 % of 60 is 57; a percentile bootstrap of eleven is a little narrow.
    assert held >= 51


def test_only_seeds_of_both_rows_count_and_h_is_that_of_each_run() -> None:
    results = [*rows(), base_new("a", "DIP", 3, 0.1, 0.1)]
    paired = compare_rows(results, "DIP", "CoOp", test_set=HARMONIC)

    def h(new: float) -> float:
        return 2 * 0.9 * new / (0.9 + new)

    assert paired.pairs == 6
    assert paired.datasets["a"] == pytest.approx((h(0.6) - h(0.5) + h(0.7) - h(0.5)) / 2)


def test_targets_of_a_transfer_count_one_by_one() -> None:
    results = [
        made_up("s", label, 1, {"source": 0.9, "b": b, "c": c}, protocol=CROSS_DATASET)
        for label, b, c in (("DIP", 0.5, 0.4), ("CoOp", 0.4, 0.5))
    ]
    paired = compare_rows(results, "DIP", "CoOp", test_set=AVERAGE)

    assert paired.datasets == pytest.approx({"s to b": 0.1, "s to c": -0.1})
    assert (paired.wins, paired.losses) == (1, 1)


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(ConfigInvalid, match="No dataset and seed has 'new' for both 'DIP' and 'X'"):
        compare_rows(rows(), "DIP", "X", test_set="new")
    mixed = [*rows(), base_new("a", "CoOp", 1, 0.9, 0.9, suite="icon")]
    with pytest.raises(ConfigInvalid, match="base-to-new / icon / vit"):
        compare_rows(mixed, "DIP", "CoOp", test_set="new")


def test_the_line_for_people() -> None:
    text = compare_rows(rows(), "DIP", "CoOp", test_set="new").text()

    assert text.startswith("DIP - CoOp, new: +8.33 points [")
    assert text.endswith("4 wins, 1 ties, 1 losses of 6 pairs, p = 0.5 over 3 datasets")
