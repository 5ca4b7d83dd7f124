"""The papers' numbers as data: they add up as the papers say, and each finds its row of ours."""

import math
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources

import pytest

from prompt_serve.research.protocols.paper_tables import (
    DATASETS,
    PaperRow,
    paper_row_for,
    paper_rows,
)
from prompt_serve.research.protocols.rows import row_sets
from prompt_serve.research.protocols.summary import (
    AVERAGE,
    BASE,
    BASE_TO_NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    HARMONIC,
    NEW,
    SOURCE,
    TRANSFER,
    harmonic_mean,
)
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.methods import METHODS

# Tables round to 0.01; a harmonic mean of two rounded numbers is off by up to as much again.
ROUNDING = 0.0101


def check_tables(rows: Sequence[PaperRow]) -> Iterator[str]:
    """Yield averages and harmonic means in the papers that do not match their parts."""
    for row in rows:
        figures = row.figures
        if {BASE, NEW, HARMONIC} <= figures.keys():
            expected = harmonic_mean(figures[BASE], figures[NEW])
            yield from _off(row, HARMONIC, figures[HARMONIC], expected)
        if row.protocol in TRANSFER and AVERAGE in figures:
            targets = [v for name, v in figures.items() if name not in (SOURCE, AVERAGE)]
            yield from _off(row, "the average", figures[AVERAGE], math.fsum(targets) / len(targets))
    yield from _averages_off(rows)


def _averages_off(rows: Sequence[PaperRow]) -> Iterator[str]:
    plain = [row for row in rows if not row.ablation and row.protocol not in (*TRANSFER, "cost")]
    for average in (row for row in plain if row.dataset == AVERAGE):
        key = (average.label, average.protocol, average.shots)
        panels = {
            row.dataset: row.figures
            for row in plain
            if (row.label, row.protocol, row.shots) == key and row.dataset != AVERAGE
        }
        if set(panels) != set(DATASETS):
            continue  # H of an average is not a mean of H; it is checked above
        for name in (name for name in average.figures if name != HARMONIC):
            mean = math.fsum(panel[name] for panel in panels.values()) / len(panels)
            yield from _off(average, f"the average of {name!r}", average.figures[name], mean)


def _off(row: PaperRow, what: str, printed: float, expected: float) -> Iterator[str]:
    if abs(printed - expected) > ROUNDING:
        yield (
            f"{row.source}, {row.label}, {row.protocol} of {row.dataset}: {what} is printed as "
            f"{printed:.2f}, and comes to {expected:.2f}"
        )


def test_averages_and_harmonic_means_come_out_but_for_one() -> None:
    """RPO's H is not that of its base and new; all else is within rounding."""
    (fault,) = check_tables(paper_rows())

    assert "RPO" in fault
    assert "H is printed as 77.78, and comes to 77.94" in fault


def test_a_wrong_digit_is_noticed() -> None:
    from dataclasses import replace

    (row,) = [r for r in paper_rows(FEW_SHOT, dataset="dtd") if r.label == "ADAPT T=128"]
    changed = replace(row, figures={"test": row.figures["test"] + 1})
    rows = [changed if r is row else r for r in paper_rows()]

    assert any("ADAPT T=128, few-shot of average" in fault for fault in check_tables(rows))


def test_zero_shot_panels_from_memory_complete_the_average() -> None:
    panels = {r.dataset: r for r in paper_rows(BASE_TO_NEW) if r.label == "CLIP" and not r.ablation}

    assert set(panels) == {*DATASETS, AVERAGE}
    remembered = {name for name, row in panels.items() if row.from_memory}
    assert remembered == {"food101", "sun397", "dtd", "eurosat", "ucf101"}
    for name in ("base", "new"):
        mean = math.fsum(panels[d].figures[name] for d in DATASETS) / 11
        # Eleven numbers rounded to 0.01.
        assert mean == pytest.approx(panels[AVERAGE].figures[name], abs=0.0101)


@pytest.mark.parametrize("label", ["CoOp", "DIP+CoOp", "MaPLe", "DIP+MaPLe"])
def test_panels_that_are_not_in_the_text_are_absent(label: str) -> None:
    known = {row.dataset for row in paper_rows(BASE_TO_NEW, ablations=False) if row.label == label}

    assert set(DATASETS) - known == {"food101", "sun397", "dtd", "eurosat", "ucf101"}


def test_a_number_that_is_missing_is_no_number() -> None:
    (row,) = [row for row in paper_rows(CROSS_DATASET) if row.label == "DIP+CoOp"]

    assert "source" not in row.figures
    assert row.figures["eurosat"] == 42.10
    assert all(math.isfinite(value) for row in paper_rows() for value in row.figures.values())


def test_every_paper_method_has_settings_of_ours() -> None:
    labels = {row.label for row in paper_rows()}

    file = resources.files("prompt_serve.research.protocols") / "paper_tables.toml"
    methods = tomllib.loads(file.read_text(encoding="utf-8"))["methods"]
    assert set(methods) <= labels
    for values in methods.values():
        assert make_config(values).method in METHODS


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (make_config(method="zero-shot"), "CLIP"),
        (make_config(method="coop"), "CoOp"),
        (make_config(method="coop", depth=1, epochs=50), "CoOp"),
        (make_config(method="dip", rank=1, dropout=0.2), "DIP+CoOp"),
        (make_config(method="qcoop"), "QCoOp b=1"),
        (make_config(method="maple", depth=9), "MaPLe"),
        (make_config(method="dip-maple"), "DIP+MaPLe"),
        (make_config(method="qmaple"), "QMaPLe"),
        (make_config(method="kgcoop"), "KgCoOp"),
    ],
)
def test_a_run_finds_its_row_in_the_main_table(config: TrainConfig, label: str) -> None:
    row = paper_row_for(config.to_dict(), BASE_TO_NEW, AVERAGE)

    assert row is not None
    assert row.label == label
    assert not row.ablation


@pytest.mark.parametrize(
    "config",
    [
        make_config(method="dip", rank=4),
        make_config(method="dip", bits=1),
        make_config(method="coop", depth=4),
        make_config(method="coop", bits=2),
        make_config(method="qcoop", bits=8),
        make_config(method="promptsrc"),
    ],
)
def test_what_the_papers_did_not_learn_has_no_row(config: TrainConfig) -> None:
    saved = config.to_dict()

    assert paper_row_for(saved, BASE_TO_NEW, AVERAGE, ablations=True) is None


def test_rows_of_ablations_only_when_asked_for() -> None:
    after = make_config(method="qcoop", bits=1, quantization="ptq").to_dict()

    assert paper_row_for(after, BASE_TO_NEW, AVERAGE) is None
    row = paper_row_for(after, BASE_TO_NEW, AVERAGE, ablations=True)
    assert row is not None
    assert (row.label, row.figures["H"]) == ("QCoOp PTQ", 74.73)


def test_figures_by_protocol() -> None:
    adapt = paper_row_for({"method": "adapt", "tokens": 128}, FEW_SHOT, "eurosat", shots=16)
    qcoop = paper_row_for({"method": "qcoop", "bits": 1}, DOMAIN_GENERALIZATION, "imagenet")

    assert adapt is not None
    assert (adapt.figures, adapt.source) == (
        {"test": 92.53},
        "ADAPT (ICLR 2025 submission), Tables 1 and 2",
    )
    assert qcoop is not None
    assert (qcoop.figures["imagenet-a"], qcoop.figures[AVERAGE]) == (51.10, 60.20)
    assert paper_row_for({"method": "adapt", "tokens": 128}, FEW_SHOT, "eurosat", shots=4) is None


def test_named_rows_find_the_papers_rows() -> None:
    found = {
        row.label: paper_row_for(row.config().to_dict(), BASE_TO_NEW, AVERAGE)
        for row in (*row_sets()["text"], *row_sets()["image"])
    }
    labels = {label: row.label for label, row in found.items() if row is not None}

    assert labels["DIP"] == "DIP+CoOp"
    assert labels["DIP+MaPLe"] == "DIP+MaPLe"
    assert "DIP, depth 4" not in labels
