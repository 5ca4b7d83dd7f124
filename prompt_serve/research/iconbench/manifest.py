"""The built benchmark on disk: one table of all images, and a note of what they were made from.

``manifest.csv`` has the columns task, part, style, class, path; ``built.json`` is written last, so
that a folder without it is not finished.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from prompt_serve.errors import DatasetInvalid, DatasetMissing
from prompt_serve.files import atomic_file
from prompt_serve.research.iconbench.selection import Row

MANIFEST = "manifest.csv"
BUILT = "built.json"
COLUMNS = ("task", "part", "style", "class", "path")


@dataclass(frozen=True, kw_only=True)
class BuiltFrom:
    """What a folder was made from."""

    selection: str  # sha256 of rows and SVG
    pixels: str  # sha256 of what was drawn
    size: int
    resvg: str
    packages: list[str]


def write_built(folder: Path, rows: Iterable[Row], made: BuiltFrom) -> None:
    """Write the table, then the note."""
    (folder / BUILT).unlink(missing_ok=True)
    with (
        atomic_file(folder / MANIFEST) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in rows)
    with atomic_file(folder / BUILT) as temporary:
        temporary.write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")


def read_built(folder: Path) -> BuiltFrom:
    """The note.

    Raises:
        DatasetMissing: the folder is not there or not finished.
        DatasetInvalid: the note is none of ours.
    """
    try:
        text = (folder / BUILT).read_text(encoding="utf-8")
    except OSError as error:
        raise DatasetMissing(
            f"IconBench is not in {folder}. Fetch and draw it with prompt-serve data iconbench "
            f"(needs the npm registry once, and a few minutes).",
            name="iconbench",
        ) from error
    try:
        return BuiltFrom(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DatasetInvalid(f"{folder / BUILT} is damaged: {error}. {AGAIN}") from error


AGAIN = "Run prompt-serve data iconbench again."


def read_rows(folder: Path) -> tuple[Row, ...]:
    """The table, in its order.

    Raises:
        DatasetInvalid: it is not there, or none of ours.
    """
    path = folder / MANIFEST
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        if tuple(lines[0]) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(lines[0])}")
        return tuple(
            Row(task=task, part=part, style=style, class_name=name, path=image)
            for task, part, style, name, image in lines[1:]
        )
    except (OSError, ValueError, IndexError) as error:
        raise DatasetInvalid(f"{path} cannot be read: {error}. {AGAIN}") from error
