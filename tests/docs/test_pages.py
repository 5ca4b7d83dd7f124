"""Form of the pages, and the comparison that ``test_code_blocks`` relies on."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.docs.pages import blocks_of, missing_lines
from tests.service.process import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
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
