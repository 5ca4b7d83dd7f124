"""Code blocks of a Markdown page, and the comparison of printed output with the shown one."""

import json
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.service.process import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = "not run:"
NOT_OUTPUT = "not output:"
STARTS_SERVICE = "starts the service"
# Other processors and thread counts round differently; a wrong command is off by far more.
TOLERANCE = 6.0

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<comment>[^\n]*?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A code block, with the output shown below it.

    Args:
        comment: the HTML comment directly above; a reason if the block is not run.
        output: lines of the ``text`` block that follows, without ``...``.
        answer: the JSON document of the ``json`` block that follows.
    """

    language: str
    text: str
    comment: str
    line: int
    output: tuple[str, ...] = ()
    answer: Any = None

    @property
    def runs(self) -> bool:
        return self.language in ("sh", "python") and not self.comment.startswith(NOT_RUN)


def all_blocks(page: Path) -> Iterator[Block]:
    """Yield every code block of a page in order, of any language."""
    markdown = page.read_text()
    for match in _BLOCK.finditer(markdown):
        yield Block(
            language=match["language"],
            text=textwrap.dedent(match["text"]),
            comment=match["comment"] or "",
            line=markdown.count("\n", 0, match.start("language")) + 1,
        )


def blocks_of(page: Path) -> list[Block]:
    """Return the ``sh`` and ``python`` blocks of a page in order, with what they print."""
    blocks: list[Block] = []
    for block in all_blocks(page):
        if block.language in ("sh", "python"):
            blocks.append(block)
        elif block.language in ("text", "json") and not block.comment.startswith(NOT_OUTPUT):
            assert blocks, f"{page}:{block.line}: output without a command above"
            last = blocks[-1]
            assert last.answer is None, f"{page}:{block.line}: a second output"
            assert not last.output, f"{page}:{block.line}: a second output"
            if block.language == "json":
                blocks[-1] = replace(last, answer=json.loads(block.text))
            else:
                lines = [line for line in block.text.splitlines() if line.strip()]
                shown = tuple(line for line in lines if line.strip() != "...")
                blocks[-1] = replace(last, output=shown)
    return blocks


def missing_lines(shown: tuple[str, ...], printed: str) -> list[str]:
    """Return the shown lines that were not printed, in this order.

    A shown line matches if it is part of a printed one up to ``TOLERANCE`` in each number that has
    a percent sign or a decimal point; other numbers must be equal.
    """
    remaining = printed.splitlines()
    missing = []
    for line in shown:
        for place, candidate in enumerate(remaining):
            if _matches(line, candidate):
                # The same printed line may hold the next shown piece as well.
                remaining = remaining[place:]
                if line.strip() == candidate.strip():
                    remaining = remaining[1:]
                break
        else:
            missing.append(line)
    return missing


def _matches(shown: str, printed: str) -> bool:
    pattern = _NUMBER.sub("\0", re.sub(r"\s+", " ", shown.strip()))
    pattern = re.escape(pattern).replace(re.escape("\0"), r"([\d,]+(?:\.\d+)?)")
    found = re.search(pattern, re.sub(r"\s+", " ", printed))
    if found is None:
        return False
    expected = [(match[0], _is_measured(shown, match)) for match in _NUMBER.finditer(shown)]
    return all(
        abs(_value(ours) - _value(theirs)) <= TOLERANCE if measured else ours == theirs
        for (ours, measured), theirs in zip(expected, found.groups(), strict=True)
    )


def _is_measured(line: str, number: re.Match[str]) -> bool:
    return "." in number[0] or line[number.end() :].startswith("%")


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def json_documents(printed: str) -> list[Any]:
    """Return the JSON objects and arrays in an output; curl adds no line breaks."""
    decoder = json.JSONDecoder()
    found = []
    place = 0
    while (start := re.compile(r"[\[{]").search(printed, place)) is not None:
        try:
            document, place = decoder.raw_decode(printed, start.start())
        except json.JSONDecodeError:
            place = start.end()
        else:
            found.append(document)
    return found


def same_document(shown: Any, printed: Any) -> bool:
    """Tell whether a JSON document is the shown one, up to rounding.

    A string that ends in ``...`` stands for any string.
    """
    if isinstance(shown, dict):
        return (
            isinstance(printed, dict)
            and shown.keys() == printed.keys()
            and all(same_document(value, printed[key]) for key, value in shown.items())
        )
    if isinstance(shown, list):
        return (
            isinstance(printed, list)
            and len(shown) == len(printed)
            and all(map(same_document, shown, printed))
        )
    if isinstance(shown, str) and shown.endswith("..."):
        return isinstance(printed, str)
    if isinstance(shown, float):
        return isinstance(printed, float) and math.isclose(
            shown, printed, rel_tol=TOLERANCE / 100, abs_tol=TOLERANCE / 100
        )
    return bool(shown == printed)
