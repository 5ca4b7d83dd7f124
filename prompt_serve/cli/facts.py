"""Print facts: as lines and tables for people, as JSON with ``--json``.

With ``--json``, standard output holds JSON only: one document, or one object per line where a list
may be long. Everything else, such as notes and progress, goes to standard error.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Report:
    """Facts of a finished command, in both forms."""

    document: Any  # JSON types
    lines: Sequence[str]

    def print(self, *, as_json: bool, quiet: bool = False) -> None:
        """Print one of the forms; ``quiet`` silences the lines."""
        if as_json:
            print_document(self.document)
        elif not quiet:
            click.echo("\n".join(self.lines))


def json_option(command: Command) -> Command:
    """Add ``--json``, for a command that describes one thing."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
    )(command)


def json_lines_option(noun: str) -> Callable[[Command], Command]:
    """Return a decorator that adds ``--json``, for a command that lists things.

    Args:
        noun: what is listed, for the help.
    """
    return click.option(
        "--json", "as_json", is_flag=True, help=f"Print one JSON object per {noun}, each on a line."
    )


def print_document(document: object) -> None:
    """Print a JSON document, indented."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def print_json_lines(documents: Iterable[object]) -> None:
    """Print JSON documents, one per line."""
    for document in documents:
        click.echo(json.dumps(document, ensure_ascii=False))


def print_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Set[str] = frozenset(),
    empty: str,
) -> None:
    """Print a table with a header row.

    Args:
        header: titles of the columns.
        rows: cells of each row.
        right: titles of the columns that are aligned to the right.
        empty: sentence for standard error if there are no rows: that there are none, and how to
            get some.
    """
    lines = table_lines(header, rows, right=right)
    click.echo("\n".join(lines) if len(lines) > 1 else empty, err=len(lines) == 1)


def table_lines(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Set[str] = frozenset()
) -> list[str]:
    """Return the lines of a table: see ``print_table``."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line in lines:
        cells = zip(line, widths, header, strict=True)
        padded = (f"{cell:{'>' if title in right else '<'}{width}}" for cell, width, title in cells)
        shown.append("  ".join(padded).rstrip())
    return shown


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, one pair per line; those without a value are left out."""
    shown = {name: value for name, value in fields.items() if value not in (None, "")}
    width = max(map(len, shown))
    for name, value in shown.items():
        click.echo(f"{name:<{width}}  {value}")


def to_the_second(time: str) -> str:
    """Return an ISO 8601 time in UTC and whole seconds; a text of another form as it is."""
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError:
        return time
    in_utc = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    return in_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
