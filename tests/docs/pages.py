"""Code blocks of a Markdown page, and the comparison of printed output with the shown one."""

import re
from dataclasses import dataclass
from pathlib import Path

NOT_RUN = "not run:"
STARTS_SERVICE = "starts the service"
# Other processors and thread counts round differently; a wrong command is off by far more.
TOLERANCE = 6.0

_BLOCK = re.compile(
    r"(?:<!-- (?P<comment>[^\n]*?) -->\n)?^```(?P<language>sh|python|text)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A code block, with the output shown below it.

    Args:
        comment: the HTML comment directly above; a reason if the block is not run.
        output: lines of the ``text`` block that follows, without ``...``.
    """

    language: str
    text: str
    comment: str
    output: tuple[str, ...]
    line: int

    @property
    def runs(self) -> bool:
        return not self.comment.startswith(NOT_RUN)


def blocks_of(page: Path) -> list[Block]:
    """Return the ``sh`` and ``python`` blocks of a page in order."""
    markdown = page.read_text()
    blocks: list[Block] = []
    for match in _BLOCK.finditer(markdown):
        if match["language"] == "text":
            shown = [line for line in match["text"].splitlines() if line.strip() not in ("", "...")]
            last = blocks.pop()
            assert not last.output, f"{page}: two outputs below line {last.line}"
            blocks.append(
                Block(
                    language=last.language,
                    text=last.text,
                    comment=last.comment,
                    output=tuple(shown),
                    line=last.line,
                )
            )
            continue
        blocks.append(
            Block(
                language=match["language"],
                text=match["text"],
                comment=match["comment"] or "",
                output=(),
                line=markdown.count("\n", 0, match.start()) + 1,
            )
        )
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
