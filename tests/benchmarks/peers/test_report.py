"""The section of the page: figures from the turns, a row per server, written again and again."""

import re
import shutil
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.http_throughput import Load
from benchmarks.peers.report import Measured, chart, section, steadiness, table
from benchmarks.peers.turns import Plan, Turn
from drills.chaos import write_table
from prompt_serve.engines.onnx_session import available_cores
from tests.benchmarks.peers.small_peers import small_peer
from tests.service.process import ROOT

PLAN = Plan(rounds=2, seconds=2, warm_up_s=1, concurrency=4)
PEAKS = {"fp32": 400e9, "bf16": 800e9}
REASONS = [
    "ended with status 3: no weights",
    "a | b || c",
    "<!-- /peers --> and <b>bold</b>",
    "`code` *stars* \\",
    "",
]


def turn(good: int, *, failed: int = 0, seconds: float = 2.0, others: float = 0.01) -> Turn:
    latencies_ms = [10.0 * (n + 1) for n in range(good + failed)]
    statuses = Counter({"200": good, "503": failed})
    return Turn(Load(seconds, statuses, latencies_ms, 0.0), 3.0, 512 * 2**20, others)


def measured(name: str, *turns: Turn, alone: float = 20.0, cosine: float | None = 1.0) -> Measured:
    return Measured(small_peer(Path(), "good", name=name), turns, alone, cosine, PEAKS["fp32"])


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def written(found: list[Measured], missing: dict[str, str]) -> str:
    return section(found, missing, plan=PLAN, photographs="3 photographs", peaks=PEAKS)


def test_a_row_has_the_figures_of_its_turns() -> None:
    own = measured("own", turn(20, failed=1), turn(40, seconds=4.0, others=0.2), cosine=None)

    titles, _, row = map(cells, table([own], {}).splitlines())
    found = dict(zip(titles, row, strict=True))

    assert found["server"] == "own, fp32"
    assert found["images/s"] == "10.0"  # 60 in 6 s
    assert found["each turn"] == "10.0 10.0"
    assert (found["failed"], found["cosine to fp32"]) == ("1", "-")
    assert (found["start s"], found["MiB"]) == ("3.0", "512")
    assert (found["encoder alone"], found["share of it"]) == ("20.0", "0.50")
    assert found["share of the peak"] == f"{10 * 33.7e9 / PEAKS['fp32']:.2f}"


def test_the_cpu_of_the_client_is_counted_apart() -> None:
    load = Load(2.0, Counter({"200": 20}), [1.0] * 20, cpu_s=available_cores() * 2.0 / 2)
    own = measured("own", Turn(load, 1.0, 1, 0.0))

    assert own.images_per_s == 10
    assert own.share_of_encoder == pytest.approx(1.0)  # of 20, on half of the machine


def test_the_fastest_is_first_and_every_failed_server_has_a_row() -> None:
    found = [measured("slow", turn(2)), measured("fast", turn(9)), measured("middle", turn(4))]
    missing = {f"server {n}": reason for n, reason in enumerate(REASONS)}

    rows = [cells(row) for row in table(found, missing).splitlines()]

    assert {len(row) for row in rows} == {len(rows[0])}
    assert [row[0].partition(",")[0] for row in rows[2:]] == ["fast", "middle", "slow", *missing]
    assert all(row[1].startswith("not measured:") for row in rows[5:])


def test_a_drift_of_the_machine_shows() -> None:
    steady = [measured("a", turn(10), turn(10)), measured("b", turn(4), turn(4))]
    slower = [measured("a", turn(12), turn(8)), measured("b", turn(6, others=0.3), turn(4))]

    assert "mean of all: 1.000, 1.000." in steadiness(steady)
    assert "mean of all: 1.200, 0.800." in steadiness(slower)
    assert "(at most 30.0%)" in steadiness(slower)
    assert steadiness([]) == ""


@pytest.mark.parametrize("servers", [0, 1, 3])
@pytest.mark.parametrize("missing", [{}, {"other": REASONS[1]}, {"other": REASONS[2]}])
def test_only_the_section_is_written_and_twice_is_once(
    servers: int, missing: dict[str, str], tmp_path: Path
) -> None:
    page = Path(shutil.copy(ROOT / "docs" / "performance.md", tmp_path))
    before = page.read_text(encoding="utf-8")
    names = ("prompt-serve (x)", "LitServe", "infinity")[:servers]
    found = [measured(name, turn(10 + n), turn(12 + n)) for n, name in enumerate(names)]

    write_table("peers", f"\n{written(found, missing)}\n", page)
    first = page.read_text(encoding="utf-8")
    write_table("peers", f"\n{written(found, missing)}\n", page)

    assert page.read_text(encoding="utf-8") == first
    assert outside(first) == outside(before)
    for name in (*names, *missing):
        assert len(re.findall(rf"^\| {re.escape(name)}", section_of(first), re.MULTILINE)) == 1
    lines = [line for line in section_of(first).splitlines() if not line.startswith("|")]
    assert max(map(len, lines)) <= 120


def section_of(text: str) -> str:
    return text.partition("<!-- peers -->")[2].rpartition("<!-- /peers -->")[0]


def outside(text: str) -> tuple[str, str]:
    before, _, rest = text.partition("<!-- peers -->")
    return before, rest.rpartition("<!-- /peers -->")[2]


@pytest.mark.parametrize("servers", [0, 1, 5])
def test_the_chart_names_every_server_and_is_the_same_again(servers: int) -> None:
    found = [measured(f"server {n}", turn(5 + n), turn(6 + n)) for n in range(servers)]

    drawn = chart(found)

    assert drawn == chart(found)
    ElementTree.fromstring(drawn)  # our own
    for n in range(servers):
        assert f"server {n}, fp32" in drawn
