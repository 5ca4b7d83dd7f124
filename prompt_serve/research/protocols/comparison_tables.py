"""Render a comparison as text for a terminal or as Markdown."""

import textwrap
from collections.abc import Iterator, Sequence

from prompt_serve.research.protocols.comparison import Comparison
from prompt_serve.research.protocols.comparison_lines import ComparedFigure, ComparisonLine
from prompt_serve.research.protocols.summary import TRANSFER

NOTHING = "-"
WIDTH, MARKDOWN_WIDTH = 100, 120  # characters per line of wrapped sentences


def as_text(comparison: Comparison) -> str:
    """Render aligned columns, then missing datasets and caveats."""
    return "\n".join(_text_lines(comparison)) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """Render a Markdown table, then missing datasets and caveats as lists."""
    head, *rows = _cells(comparison, repeat=True)
    left = _left(comparison, len(head))
    rule = [":--" if index in left else "--:" for index in range(len(head))]
    parts = [f"**{_title(comparison)}**", ""]
    parts += [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    for title, points in _lists(comparison):
        parts += ["", f"{title}:", ""]
        for point in points:
            parts += _wrapped(point, MARKDOWN_WIDTH, "- ", "  ")
    return "\n".join(parts) + "\n"


def _has_notes(comparison: Comparison) -> bool:
    return any(line.note for line in comparison.lines)


def _left(comparison: Comparison, columns: int) -> set[int]:
    """Indexes of left-aligned columns: place, row and, at the end, notes."""
    return {0, 1, columns - 1} if _has_notes(comparison) else {0, 1}


def _text_lines(comparison: Comparison) -> Iterator[str]:
    yield _title(comparison)
    yield ""
    table = _cells(comparison, repeat=False)
    yield from _aligned(table, _left(comparison, len(table[0])))
    for title, points in _lists(comparison):
        yield ""
        yield f"{title}:"
        for point in points:
            yield from _wrapped(point, WIDTH, "  ", "    ")


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _title(comparison: Comparison) -> str:
    learned = f", learned on {comparison.learned_on}" if comparison.learned_on else ""
    spread = any(cell.ours and cell.ours.seeds > 1 for cell in _all_cells(comparison))
    unit = "accuracy (%)" + (", mean ± standard deviation over seeds" if spread else "")
    beside = "; the paper's figure, and ours minus theirs" if comparison.with_papers else ""
    return (
        f"{comparison.protocol} on {comparison.suite}{learned}, {comparison.backbone}: "
        f"{unit}{beside}"
    )


def _all_cells(comparison: Comparison) -> Iterator[ComparedFigure]:
    for line in comparison.lines:
        yield from line.cells.values()


def _cells(comparison: Comparison, *, repeat: bool) -> list[list[str]]:
    """Return header and rows; without ``repeat`` only the first row of a place names it."""
    notes = _has_notes(comparison)
    head = ["tested on" if comparison.protocol in TRANSFER else "dataset", "row"]
    head += ["shots"] if comparison.several_shots else []
    for column in comparison.columns:
        head += [column, "paper", "diff."] if column in comparison.with_papers else [column]
    table = [[*head, "note"] if notes else head]
    previous = ""
    for line in comparison.lines:
        place = line.place if repeat or line.place != previous else ""
        row = [place, *_row(line, comparison)]
        table.append([*row, line.note] if notes else row)
        previous = line.place
    return table


def _row(line: ComparisonLine, comparison: Comparison) -> list[str]:
    row = [line.label]
    row += [str(line.shots)] if comparison.several_shots else []
    for column in comparison.columns:
        cell = line.cells.get(column, ComparedFigure(ours=None))
        row.append(cell.ours.percent() if cell.ours else NOTHING)
        if column in comparison.with_papers:
            row.append(NOTHING if cell.theirs is None else f"{cell.theirs:.2f}")
            row.append(NOTHING if cell.difference is None else _signed(cell.difference))
    return row


def _signed(points: float) -> str:
    return f"{round(points, 2) + 0.0:+.2f}"  # adding 0.0 turns -0 into 0


def _aligned(table: Sequence[Sequence[str]], left: set[int]) -> Iterator[str]:
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    for row in table:
        words = [
            word.ljust(width) if index in left else word.rjust(width)
            for index, (word, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(words).rstrip()


def _lists(comparison: Comparison) -> Iterator[tuple[str, list[str]]]:
    if comparison.missing:
        yield "Not on disk", [f"{name}: {why}" for name, why in comparison.missing.items()]
    sources: dict[str, dict[str, None]] = {}
    for line in comparison.lines:
        if line.source:
            sources.setdefault(line.source, {})[line.label] = None
    if sources:
        points = [f"{source}: {'; '.join(labels)}" for source, labels in sources.items()]
        yield "The papers' figures", points
    if comparison.notes:
        yield "Before comparing", list(comparison.notes)
