"""The page as a whole: what it holds, what it lacks, what it must never hold."""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from prompt_serve.errors import ConfigInvalid, ResultsInvalid
from prompt_serve.evaluation_report.markup import printable
from prompt_serve.research.reports.report import write_report
from prompt_serve.research.reports.stored_runs import read_runs
from tests.cli.conftest import Run
from tests.cli.conftest import run as run  # the fixture
from tests.parsed_page import Page
from tests.research.reports.conftest import COOP, HOSTILE

SECTIONS = [
    "summary",
    "runs",
    "accuracy",
    "bytes",
    "curves",
    "density",
    "weights",
    "lengths",
    "predictions",
]


@pytest.fixture(scope="module")
def parsed(page: str) -> Page:
    return Page(page)


def test_every_section_is_there_with_something_in_it(parsed: Page) -> None:
    sections = parsed.all("section")
    assert [one.attributes["id"] for one in sections] == SECTIONS
    assert not [p for p in parsed.all("p") if p.attributes.get("class") == "absent"]
    links = [a.attributes["href"] for a in parsed.all("a")]
    assert links == [f"#{name}" for name in SECTIONS]


def test_each_chart_has_words_and_numbers_and_each_table_a_caption(parsed: Page) -> None:
    drawings = [d for d in parsed.all("div") if d.attributes.get("role") == "img"]
    assert len(drawings) == len(parsed.all("svg")) >= 10
    assert all(len(d.attributes["aria-label"]) > 20 for d in drawings)
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    figures = parsed.all("figure")
    assert len(figures) == len(drawings) == len(parsed.all("details"))


def test_headings_go_down_a_step_at_a_time_and_ids_are_unique(parsed: Page) -> None:
    levels = [int(one.tag[1]) for one in parsed.elements if re.fullmatch("h[1-6]", one.tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    ids = [one.attributes["id"] for one in parsed.elements if "id" in one.attributes]
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched_and_nothing_runs(page: str, parsed: Page) -> None:
    for one in parsed.elements:
        assert one.tag not in ("script", "iframe", "object", "embed", "link", "base")
        for name, value in one.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                assert value.startswith(("#", "data:image/jpeg;base64,")), value
            assert "url(" not in value or re.search(r"url\(#[\w-]+\)", value)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    uses = {u.attributes["xlink:href"][1:] for u in parsed.all("use")}
    assert uses <= {one.attributes.get("id") for one in parsed.elements}


def test_names_of_strangers_are_text(page: str, parsed: Page) -> None:
    assert "<script" not in page.lower()
    assert "<img src=x" not in page
    assert HOSTILE in parsed.all("body")[0].text
    ticks = [one.text for one in parsed.all("text")]
    # In tables, and as text of the drawings: the confusion matrix cuts names at 22 letters.
    assert any(HOSTILE[:20] in text for text in ticks)
    assert any(text.startswith("a & 'b' $x^2$") for text in ticks)
    assert any(one.text == COOP for one in parsed.all("th"))
    assert any(COOP in text for text in ticks)


def test_what_no_page_may_hold_is_replaced() -> None:
    assert printable("a\x00b\ud800c\x1b\n") == "a�b�c�\n"


@pytest.fixture(scope="module")
def lines_alone(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results without the files that were kept beside them."""
    copied = tmp_path_factory.mktemp("copied") / "copied.jsonl"
    shutil.copy(run_folder / "results.jsonl", copied)
    return copied


def test_lines_alone_give_tables_and_say_what_the_figures_want(
    run: Run, lines_alone: Path, tmp_path: Path
) -> None:
    out, again = tmp_path / "deeper" / "report.html", tmp_path / "again.html"
    result = run("report", lines_alone, "--out", out, "--title", "Ink & <oil>")
    assert result.exit_code == 0, result.output
    assert result.output == f"{out}, {out.stat().st_size:,} bytes\n"
    page = Page(out.read_text(encoding="utf-8"))
    assert page.all("h1")[0].text == page.all("title")[0].text == "Ink & <oil>"
    absent = [p.text for p in page.all("p") if p.attributes.get("class") == "absent"]
    assert len(absent) == 4  # curves, weights, lengths, predictions
    assert all(text.startswith("Left out: this section needs ") for text in absent)
    assert [s.attributes["id"] for s in page.all("section")] == SECTIONS
    # Bytes and density stand in the lines themselves.
    assert len(page.all("svg")) == 2
    # The same bytes, however often a file is named.
    write_report([lines_alone, lines_alone], again, title="Ink & <oil>")
    assert again.read_bytes() == out.read_bytes()


def test_a_single_line_of_a_row_that_learned_nothing_is_a_report(
    run_folder: Path, tmp_path: Path
) -> None:
    line = (run_folder / "results.jsonl").read_text().splitlines()[0]
    (tmp_path / "results.jsonl").write_text(line + "\n")
    write_report([tmp_path], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert not page.all("svg")
    assert "one seed" in page.all("body")[0].text


def test_an_unknown_row_or_dataset_is_refused_by_name(
    run_folder: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(
        ConfigInvalid, match="Unknown row 'Coop'; expected one of 'zero-shot', 'CoOp "
    ):
        write_report([run_folder], out, row="Coop")
    result = run("report", run_folder, "--out", out, "--dataset", "inc")
    assert result.exit_code == 2
    assert "Unknown dataset 'inc'; expected some of 'ink', 'oil'." in result.output
    assert not out.exists()


def test_missing_and_damaged_files_are_named(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsInvalid, match="cannot be read: No such file"):
        read_runs([tmp_path])
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ResultsInvalid, match="no results"):
        read_runs([tmp_path])
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    runs = read_runs([copy])
    (runs[2].folder / "history.jsonl").write_text("{}\n")
    with pytest.raises(ResultsInvalid, match=r"history\.jsonl is not a log of epochs"):
        _ = runs[2].history
    (runs[2].folder / "predictions-base.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(ResultsInvalid, match=r"predictions-base\.npz holds no predictions"):
        runs[2].predictions("base")
