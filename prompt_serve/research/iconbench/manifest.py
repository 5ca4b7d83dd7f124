"""The built benchmark on disk: a table of all images, and a record of their sources.

``manifest.csv`` has the columns task, part, style, class, path; ``built.json`` is written last, so
a folder without it is incomplete.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from prompt_serve.errors import DatasetInvalid, DatasetMissing
from prompt_serve.files import atomic_file
from prompt_serve.research.iconbench.selection import ManifestRow

MANIFEST = "manifest.csv"
BUILT = "built.json"
COLUMNS = ("task", "part", "style", "class", "path")


@dataclass(frozen=True, kw_only=True)
class BuildRecord:
    """Sources of a built folder."""

    selection: str  # sha256 of rows and SVG
    pixels: str  # sha256 of the rendered images
    size: int
    resvg: str
    packages: list[str]


def write_built(folder: Path, rows: Iterable[ManifestRow], made: BuildRecord) -> None:
    """Write the manifest, then the record."""
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


def read_built(folder: Path) -> BuildRecord:
    """Read the record.

    Raises:
        DatasetMissing: the folder is missing or incomplete.
        DatasetInvalid: the record is invalid.
    """
    try:
        text = (folder / BUILT).read_text(encoding="utf-8")
    except OSError as error:
        raise DatasetMissing(
            f"IconBench is not in {folder}. Build it with prompt-serve data iconbench "
            f"(needs the npm registry once, and a few minutes).",
            name="iconbench",
        ) from error
    try:
        return BuildRecord(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DatasetInvalid(f"{folder / BUILT} is damaged: {error}. {AGAIN}") from error


AGAIN = "Run prompt-serve data iconbench again."


def read_rows(folder: Path) -> tuple[ManifestRow, ...]:
    """Read the rows of the manifest in order.

    Raises:
        DatasetInvalid: the manifest is missing or invalid.
    """
    path = folder / MANIFEST
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        if tuple(lines[0]) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(lines[0])}")
        return tuple(
            ManifestRow(task=task, part=part, style=style, class_name=name, path=image)
            for task, part, style, name, image in lines[1:]
        )
    except (OSError, ValueError, IndexError) as error:
        raise DatasetInvalid(f"{path} cannot be read: {error}. {AGAIN}") from error
