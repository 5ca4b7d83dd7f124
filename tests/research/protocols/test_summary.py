"""Rows of tables, against arithmetic written out by hand."""

import math

import pytest

from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import (
    AVERAGE,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    HARMONIC,
    MeanOverSeeds,
    Summary,
    TableRow,
    harmonic_mean,
    summarize,
)
from tests.research.protocols.made_up import base_new, made_up

# Means of shares are exact to a few last bits.
EXACT = 1e-12


def only(results: list[Result], expected: tuple[str, ...] = ()) -> Summary:
    (summary,) = summarize(results, expected)
    return summary


def row_of(summary: Summary, dataset: str, label: str, shots: int | None = None) -> TableRow:
    row = summary.row(dataset, label, shots)
    assert row is not None
    return row


TWO_DATASETS = [
    base_new("pets", "DIP", 1, 0.90, 0.80),
    base_new("pets", "DIP", 2, 0.94, 0.70),
    base_new("cars", "DIP", 1, 0.60, 0.50),
    base_new("cars", "DIP", 2, 0.64, 0.30),
]


def test_mean_and_spread_over_seeds() -> None:
    figures = row_of(only(TWO_DATASETS), "pets", "DIP").figures

    assert figures["base"].mean == pytest.approx(0.92, abs=EXACT)
    # Two values lie 0.04 apart: sqrt((0.02^2 + 0.02^2) / (2 - 1)).
    assert figures["base"].spread == pytest.approx(math.sqrt(0.0008), abs=EXACT)
    assert figures["base"].seeds == 2


def test_one_seed_has_no_spread() -> None:
    figure = row_of(only(TWO_DATASETS[:1]), "pets", "DIP").figures["new"]

    assert figure == MeanOverSeeds(mean=0.80, spread=0.0, seeds=1)
    assert figure.percent() == "80.00"


def test_h_of_a_dataset_is_that_of_its_mean_base_and_mean_new() -> None:
    figures = row_of(only(TWO_DATASETS), "pets", "DIP").figures

    assert figures[HARMONIC].mean == pytest.approx(2 * 0.92 * 0.75 / 1.67, abs=EXACT)
    first, second = 2 * 0.9 * 0.8 / 1.7, 2 * 0.94 * 0.7 / 1.64
    assert figures[HARMONIC].mean != pytest.approx((first + second) / 2, abs=1e-5)
    assert figures[HARMONIC].spread == pytest.approx(abs(first - second) / 2**0.5, abs=EXACT)


def test_h_of_the_average_is_that_of_the_averages_not_the_average_of_h() -> None:
    summary = only(TWO_DATASETS)
    average = row_of(summary, AVERAGE, "DIP")

    base, new = (0.92 + 0.62) / 2, (0.75 + 0.40) / 2
    assert average.figures["base"].mean == pytest.approx(base, abs=EXACT)
    assert average.figures["new"].mean == pytest.approx(new, abs=EXACT)
    assert average.figures[HARMONIC].mean == pytest.approx(2 * base * new / (base + new), abs=EXACT)
    of_datasets = [row_of(summary, name, "DIP").figures[HARMONIC].mean for name in ("pets", "cars")]
    assert average.figures[HARMONIC].mean != pytest.approx(sum(of_datasets) / 2, abs=1e-3)


def test_the_papers_average_h() -> None:
    # DIP+CoOp in DIP's table 2.
    assert harmonic_mean(80.32, 74.73) == pytest.approx(77.42, abs=0.005)
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_the_spread_of_an_average_is_that_of_the_averages_of_each_seed() -> None:
    average = row_of(only(TWO_DATASETS), AVERAGE, "DIP")

    first, second = (0.80 + 0.50) / 2, (0.70 + 0.30) / 2
    assert average.figures["new"].spread == pytest.approx((first - second) / 2**0.5, abs=EXACT)
    assert average.figures["new"].seeds == 2


def test_seeds_that_some_datasets_lack_are_not_in_the_spread_of_the_average() -> None:
    average = row_of(only(TWO_DATASETS[:3]), AVERAGE, "DIP")

    assert average.figures["new"].mean == pytest.approx((0.75 + 0.50) / 2, abs=EXACT)
    assert (average.figures["new"].seeds, average.figures["new"].spread) == (1, 0.0)


def test_an_average_that_lacks_a_dataset_says_so() -> None:
    summary = only([*TWO_DATASETS, base_new("pets", "CoOp", 1, 0.9, 0.6)])

    whole, part = (row_of(summary, AVERAGE, label) for label in ("DIP", "CoOp"))
    assert (whole.over, whole.partial) == (("pets", "cars"), False)
    assert (part.over, part.missing, part.partial) == (("pets",), ("cars",), True)
    assert part.figures["new"].mean == pytest.approx(0.6, abs=EXACT)


def test_an_average_must_cover_what_is_expected() -> None:
    average = row_of(only(TWO_DATASETS, ("pets", "cars", "food101")), AVERAGE, "DIP")

    assert (average.over, average.missing) == (("pets", "cars"), ("food101",))


def test_the_last_line_of_a_run_counts() -> None:
    summary = only([*TWO_DATASETS, base_new("pets", "DIP", 1, 0.10, 0.20)])

    assert row_of(summary, "pets", "DIP").figures["base"].mean == pytest.approx(0.52, abs=EXACT)


def test_few_shot_rows_are_apart_by_shots() -> None:
    results = [
        made_up("pets", "CoOp", seed, {"test": value}, protocol=FEW_SHOT, shots=shots)
        for shots, seed, value in [(4, 1, 0.6), (1, 1, 0.4), (1, 2, 0.5), (4, 2, 0.8)]
    ]
    summary = only(results)

    assert summary.shots == (1, 4)
    assert row_of(summary, "pets", "CoOp", 1).figures["test"].mean == pytest.approx(0.45)
    assert row_of(summary, AVERAGE, "CoOp", 4).figures["test"].mean == pytest.approx(0.7)
    with pytest.raises(ValueError, match="1, 4 shots; name one"):
        summary.row("pets", "CoOp")


@pytest.mark.parametrize("protocol", [CROSS_DATASET, DOMAIN_GENERALIZATION])
def test_the_average_of_a_transfer_leaves_the_source_out(protocol: str) -> None:
    results = [
        made_up("a", "DIP", 1, {"source": 0.9, "b": 0.5, "c": 0.3}, protocol=protocol),
        made_up("a", "DIP", 2, {"source": 0.9, "b": 0.7, "c": 0.3}, protocol=protocol),
        made_up("a", "CoOp", 1, {"source": 0.9, "b": 0.5}, protocol=protocol),
    ]
    summary = only(results)
    row, part = row_of(summary, "a", "DIP"), row_of(summary, "a", "CoOp")

    assert summary.test_sets == ("source", "b", "c", AVERAGE)
    assert row.figures[AVERAGE].mean == pytest.approx((0.6 + 0.3) / 2, abs=EXACT)
    assert row.figures[AVERAGE].spread == pytest.approx((0.5 - 0.4) / 2**0.5, abs=EXACT)
    assert (row.over, row.partial) == (("b", "c"), False)
    assert (part.over, part.missing) == (("b",), ("c",))
    assert summary.row(AVERAGE, "DIP") is None


def test_protocols_suites_and_backbones_are_tables_of_their_own() -> None:
    one = base_new("pets", "DIP", 1, 0.9, 0.8)
    others = [
        base_new("pets", "DIP", 1, 0.1, 0.1, suite="icon"),
        base_new("pets", "DIP", 1, 0.1, 0.1, backbone="resnet"),
        made_up("pets", "DIP", 1, {"test": 0.1}, protocol=FEW_SHOT),
    ]
    summaries = summarize([one, *others])

    assert len(summaries) == 4
    assert row_of(summaries[0], "pets", "DIP").figures["base"].mean == 0.9


def test_what_a_prompt_costs_is_a_mean_over_its_runs() -> None:
    results = [
        base_new("pets", "CSC", 1, 0.9, 0.8, payload_bytes=100, seconds=1.0),
        base_new("cars", "CSC", 1, 0.9, 0.8, payload_bytes=300, seconds=3.0),
    ]
    average = row_of(only(results), AVERAGE, "CSC")

    assert (average.payload_bytes, average.seconds) == (200.0, 2.0)
