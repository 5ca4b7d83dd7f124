"""Our tables beside the papers': which of their figures stands where, and what is said of gaps."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from prompt_serve.research.datasets.suite import Suite
from prompt_serve.research.protocols.comparison import Comparison, compare_with_papers
from prompt_serve.research.protocols.comparison_lines import ComparisonLine
from prompt_serve.research.protocols.comparison_tables import as_markdown, as_text
from prompt_serve.research.protocols.paper_tables import DATASETS
from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import (
    AVERAGE,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    HARMONIC,
)
from prompt_serve.training.config import make_config
from tests.research.protocols.made_up import base_new, made_up

OPENAI = "ViT-B-16/openai"


def settings(method: str, **more: Any) -> dict[str, Any]:
    config = make_config(method=method, **more)
    return json.loads(json.dumps(config.to_dict()))  # type: ignore[no-any-return]


def pair(dataset: str, label: str, method: str, base: float, new: float, seed: int = 1) -> Result:
    config = settings(method, seed=seed)
    return base_new(dataset, label, seed, base, new, method=method, config=config, backbone=OPENAI)


def only(results: list[Result], suite: Suite | None = None, *datasets: str) -> Comparison:
    (comparison,) = compare_with_papers(results, suite, datasets)
    return comparison


def line_of(comparison: Comparison, place: str, label: str) -> ComparisonLine:
    (line,) = [one for one in comparison.lines if (one.place, one.label) == (place, label)]
    return line


def suite(
    missing: Mapping[str, str] | None = None, domains: Mapping[str, str] | None = None
) -> Suite:
    return Suite(
        name="papers",
        datasets={},
        source="imagenet",
        missing=missing or {},
        missing_domains=domains or {},
    )


def test_a_figure_stands_beside_the_papers_with_the_difference() -> None:
    results = [
        pair("oxford_pets", "DIP", "dip", 0.95, 0.97, 1),
        pair("oxford_pets", "DIP", "dip", 0.96, 0.99, 2),
    ]
    cell = line_of(only(results), "oxford_pets", "DIP").cells["base"]

    # DIP, Table 9: 95.53.
    assert cell.theirs == 95.53
    assert cell.difference == pytest.approx(95.5 - 95.53, abs=1e-9)


def test_the_whole_average_stands_beside_the_printed_one() -> None:
    results = [pair(name, "DIP", "dip", 0.8, 0.7) for name in DATASETS]
    line = line_of(only(results), AVERAGE, "DIP")

    assert [line.cells[name].theirs for name in ("base", "new", HARMONIC)] == [80.32, 74.73, 77.42]
    assert line.note == ""


def test_an_average_over_some_stands_beside_the_mean_of_the_papers_for_the_same() -> None:
    results = [pair(name, "DIP", "dip", 0.8, 0.7) for name in ("oxford_pets", "fgvc_aircraft")]
    comparison = only(results)
    line = line_of(comparison, AVERAGE, "DIP")

    base, new = (95.53 + 35.17) / 2, (97.93 + 35.57) / 2
    assert line.cells["base"].theirs == pytest.approx(base)
    assert line.cells[HARMONIC].theirs == pytest.approx(2 * base * new / (base + new))
    assert line.note == "over 2 of 11"
    assert "not with the average that the paper prints" in comparison.notes[0]


def test_no_average_of_a_paper_where_it_lacks_one_of_the_panels() -> None:
    results = [pair(name, "DIP", "dip", 0.8, 0.7) for name in ("oxford_pets", "dtd")]

    assert line_of(only(results), AVERAGE, "DIP").cells["base"].theirs is None


def test_what_is_missing_on_disk_is_a_row_and_says_why() -> None:
    results = [pair("oxford_pets", "CLIP", "zero-shot", 0.9, 0.9)]
    comparison = only(results, suite({"dtd": "fetch dtd-r1.0.1.tar.gz"}))
    line = line_of(comparison, "dtd", "CLIP")

    assert (line.cells["base"].ours, line.cells["base"].theirs) == (None, 53.24)
    assert line.note == "not on disk, paper: from memory"
    assert "  dtd: fetch dtd-r1.0.1.tar.gz" in as_text(comparison)
    assert [one.place for one in comparison.lines] == ["oxford_pets", "dtd"]


def test_what_is_missing_and_has_no_figure_in_the_papers_is_one_row() -> None:
    results = [
        pair("oxford_pets", label, method, 0.9, 0.9)
        for label, method in (("CoOp", "coop"), ("DIP", "dip"))
    ]
    absent = [line for line in only(results, suite({"dtd": "fetch it"})).lines if not line.cells]

    assert [(line.place, line.label, line.note) for line in absent] == [("dtd", "", "not on disk")]


def test_what_nobody_asked_for_is_not_missing() -> None:
    results = [pair("oxford_pets", "CLIP", "zero-shot", 0.9, 0.9)]

    assert only(results, suite({"dtd": "fetch it"}), "oxford_pets").missing == {}


@pytest.mark.parametrize("name", ["icon", "user"])
def test_other_suites_have_nothing_to_compare_with(name: str) -> None:
    results = [
        base_new(dataset, "DIP", 1, 0.8, 0.7, suite=name, method="dip", config=settings("dip"))
        for dataset in ("oxford_pets", "dtd")
    ]
    comparison = only(results)

    assert comparison.with_papers == frozenset()
    assert line_of(comparison, AVERAGE, "DIP").note == ""
    assert "paper" not in as_text(comparison)


def test_few_shot_columns_are_shots_and_only_sixteen_has_a_paper() -> None:
    results = [
        made_up(
            "eurosat",
            "ADAPT",
            1,
            {"test": accuracy},
            protocol=FEW_SHOT,
            method="adapt",
            shots=shots,
            config=settings("adapt", tokens=16, shots=shots),
            backbone=OPENAI,
        )
        for shots, accuracy in ((1, 0.5), (16, 0.9))
    ]
    comparison = only(results)
    cells = line_of(comparison, "eurosat", "ADAPT").cells

    assert comparison.columns == ("1 shot", "16 shots")
    assert (cells["1 shot"].theirs, cells["16 shots"].theirs) == (None, 91.00)
    assert cells["16 shots"].difference == pytest.approx(-1.0)
    assert "epochs 50 instead of 100" in " ".join(comparison.notes)


def test_transfer_has_a_place_for_each_test_set() -> None:
    accuracy = {"source": 0.70, "dtd": 0.45, "eurosat": 0.50}
    result = made_up(
        "imagenet",
        "QCoOp",
        1,
        accuracy,
        protocol=CROSS_DATASET,
        method="qcoop",
        config=settings("qcoop"),
        backbone=OPENAI,
    )
    comparison = only([result])

    assert comparison.learned_on == "imagenet"
    assert [line.place for line in comparison.lines] == ["source", "dtd", "eurosat", AVERAGE]
    theirs = [line.cells["accuracy"].theirs for line in comparison.lines]
    assert theirs == [70.63, 44.20, 48.23, pytest.approx((44.20 + 48.23) / 2)]
    assert comparison.lines[-1].note == "over 2 of 10"


def test_all_domains_stand_beside_the_printed_average() -> None:
    accuracy = {
        "source": 0.7,
        "imagenetv2": 0.64,
        "imagenet-sketch": 0.49,
        "imagenet-a": 0.51,
        "imagenet-r": 0.77,
    }
    result = made_up(
        "imagenet",
        "QCoOp",
        1,
        accuracy,
        protocol=DOMAIN_GENERALIZATION,
        method="qcoop",
        config=settings("qcoop"),
        backbone=OPENAI,
    )
    line = line_of(only([result]), AVERAGE, "QCoOp")

    assert line.cells["accuracy"].theirs == 60.20
    missing = only([result], suite(domains={"imagenet-r": "fetch imagenet-r.tar"})).missing
    assert missing == {"imagenet-r": "fetch imagenet-r.tar"}


def test_another_backbone_and_other_epochs_are_said() -> None:
    result = base_new(
        "oxford_pets", "CoOp", 1, 0.9, 0.9, method="coop", config=settings("coop"), backbone="RN50"
    )
    notes = " ".join(only([result]).notes)

    assert "The papers measured OpenAI's ViT-B/16; these figures were measured on RN50." in notes
    assert "CoOp was not trained with the paper's settings: epochs 50 instead of 200" in notes


ROWS = [
    pair("oxford_pets", "CLIP", "zero-shot", 0.9117, 0.9726),
    pair("oxford_pets", "DIP, rank 4", "dip", 0.9553, 0.9793),
]


def test_one_dataset_as_text() -> None:
    head, _, *table = as_text(only(ROWS)).splitlines()

    assert head.startswith("base-to-new on papers, ViT-B-16/openai: accuracy (%); the paper")
    assert table[:3] == [
        "dataset      row           base  paper  diff.    new  paper  diff.      H  paper  diff.",
        "oxford_pets  CLIP         91.17  91.17  +0.00  97.26  97.26  +0.00  94.12  94.12  +0.00",
        "             DIP, rank 4  95.53  95.53  +0.00  97.93  97.93  +0.00  96.72  96.72  +0.00",
    ]


def test_text_of_eleven_datasets_is_aligned() -> None:
    results = [pair(name, "DIP", "dip", 0.8, 0.7, seed) for name in DATASETS for seed in (1, 2)]
    lines = as_text(only(results)).splitlines()
    table = lines[2 : 2 + 1 + 12]
    column = table[0].index(" H") + 2

    assert [line.split()[0] for line in table[1:]] == [*DATASETS, AVERAGE]
    # Figures are flush right under the end of their head.
    assert all(line[:column].endswith("± 0.00") for line in table[1:])


def test_markdown_has_a_row_for_each_line() -> None:
    text = as_markdown(only(ROWS))

    assert "| oxford_pets | CLIP | 91.17 | 91.17 | +0.00 | 97.26 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_json_keeps_full_precision() -> None:
    content = json.loads(json.dumps(only(ROWS).to_dict()))

    cell = content["lines"][0]["cells"]["base"]
    assert cell["mean"] == 0.9117
    assert (cell["paper_percent"], cell["seeds"]) == (91.17, 1)


def test_the_average_alone() -> None:
    results = [pair(name, "DIP", "dip", 0.8, 0.7) for name in DATASETS]

    assert [line.place for line in only(results).only(AVERAGE).lines] == [AVERAGE]
