"""Form of the pages, and the comparison that ``test_code_blocks`` relies on."""

import json
import re
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import PAGES as RUN_PAGES
from tests.docs.pages import (
    STARTS_SERVICE,
    all_blocks,
    blocks_of,
    json_documents,
    missing_lines,
    same_document,
)
from tests.service.process import ROOT

PAGES = [ROOT / "CHANGELOG.md", *RUN_PAGES]
PARSERS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}
LINE_LENGTH = 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_are_short(page: Path) -> None:
    lines = [line for line in page.read_text().splitlines() if not line.startswith("|")]

    assert [line for line in lines if len(line) > LINE_LENGTH] == []


def test_output_is_compared_up_to_rounding() -> None:
    printed = "images: 192 train\nval   39.6%   58.3%\nfile 2,072 bytes, a.safetensors"

    assert missing_lines(("192 train", "val 40.1% 57.9%"), printed) == []
    assert missing_lines(("file  2,072 bytes",), printed) == []
    assert missing_lines(("val 39.6% 78.3%",), printed) == ["val 39.6% 78.3%"]
    assert missing_lines(("file 2,073 bytes",), printed) == ["file 2,073 bytes"]
    assert missing_lines(("val 39.6%", "images: 192"), printed) == ["images: 192"]
    assert missing_lines(("gesture 75%",), "wildlife 75%") == ["gesture 75%"]


def test_a_text_block_belongs_to_the_code_above_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: no reason -->\n```sh\nfalse\n```\n\n```python\nprint(1)\n```\n\n"
        "```text\n1\n...\n```\n"
    )

    skipped, python = blocks_of(page)
    assert (skipped.language, skipped.runs, skipped.output) == ("sh", False, ())
    assert (python.language, python.text, python.output) == ("python", "print(1)\n", ("1",))


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_names_its_language_and_parses(page: Path) -> None:
    for block in all_blocks(page):
        assert block.language in {"sh", "python", "text", *PARSERS}, f"{page}:{block.line}"
        PARSERS.get(block.language, str)(block.text)


def test_pages_have_blocks_of_no_other_form() -> None:
    for page in RUN_PAGES:
        fences = re.findall(r"^ *```", page.read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(list(all_blocks(page))), page


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_that_serve_say_so(page: Path) -> None:
    serving = [
        block
        for block in all_blocks(page)
        if block.runs and re.search(r"^bentoml serve", block.text, re.MULTILINE)
    ]

    assert [block.line for block in serving if block.comment != STARTS_SERVICE] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_whole(page: Path) -> None:
    assert split_tables(page.read_text()) == []


def split_tables(markdown: str) -> list[int]:
    """Return the lines at which rows follow that have no header above them."""
    lines = markdown.splitlines()
    starts = [
        number
        for number, line in enumerate(lines)
        if line.startswith("|") and not (number and lines[number - 1].startswith("|"))
    ]
    following = [*lines, ""]
    return [n + 1 for n in starts if not re.fullmatch(r"[|:\- ]+", following[n + 1] or "x")]


def test_a_table_that_a_blank_line_splits_is_found() -> None:
    table = "| a | b |\n| --- | :-: |\n| 1 | 2 |\n"

    assert split_tables(table) == []
    assert split_tables(f"{table}\n{table}") == []
    assert split_tables(f"text\n\n{table}\n| 3 | 4 |\n| 5 | 6 |\n") == [7]
    assert split_tables("| a | b |") == [1]


def test_json_is_found_in_an_output_and_compared_up_to_rounding() -> None:
    printed = '% {"a": [1, {"p": 0.5}]}{"b": "x y"} [2]'

    assert json_documents(printed) == [{"a": [1, {"p": 0.5}]}, {"b": "x y"}, [2]]
    assert same_document({"a": [1, {"p": 0.51}]}, {"a": [1, {"p": 0.5}]})
    assert same_document({"v": "74c8..."}, {"v": "4711"})
    for other in ({"a": 1}, {"a": [1, {"p": 0.7}]}, {"a": [2, {"p": 0.5}]}, {"a": [1]}, [1], None):
        assert not same_document({"a": [1, {"p": 0.5}]}, other)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    folders = "prompt_serve|tests|deploy|benchmarks|training|service|prompts"
    named = re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text())

    assert [path for path in named if not _exists(path)] == []


def _exists(path: str) -> bool:
    return (ROOT / path).exists() or (ROOT / "prompt_serve" / path).exists()


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_outside_of_the_site_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text())

    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_sections_of_the_readme_that_the_site_shows_have_no_relative_links() -> None:
    section = r"<!-- --8<-- \[start:([\w-]+)\] -->(.*?)<!-- --8<-- \[end:\1\] -->"
    sections = re.findall(section, (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(sections) >= 4

    links = [link for _, text in sections for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert [link for link in links if "://" not in link] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "api").glob("*.md")), ids=lambda p: p.name)
def test_members_that_an_api_page_lists_exist(page: Path) -> None:
    blocks = re.split(r"^::: ", page.read_text(), flags=re.MULTILINE)[1:]
    assert blocks
    for block in blocks:
        name = block.split("\n", 1)[0].strip()
        listed = re.search(r"members: \[(.*?)\]", block, re.DOTALL)
        for member in re.findall(r"\w+", listed.group(1)) if listed else ():
            assert hasattr(import_module(name), member), f"{name} has no {member}"
