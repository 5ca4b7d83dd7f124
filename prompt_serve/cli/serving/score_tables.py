"""Rows of scores -> a table on disk: jsonl and CSV row by row, Parquet whole at the end.

jsonl and CSV hold every row as soon as it is known, so an interrupted run can be taken up again;
a Parquet file appears when it is complete.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol

from prompt_serve.client import ScoredImage
from prompt_serve.errors import ConfigInvalid
from prompt_serve.files import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

COLUMNS = (
    "source",
    "task",
    "version",
    "class_name",
    "probability",
    "unknown",
    "classes",
    "error_code",
    "error",
)
ROWS_PER_GROUP = 10_000
_ESCAPE = "surrogateescape"  # as os.fsdecode does: a path may hold bytes that are no UTF-8

Row = dict[str, Any]


class Table(Protocol):
    """Takes rows."""

    def write(self, row: Row) -> None: ...


def row_of(scored: ScoredImage) -> Row:
    """The columns of a row; ``classes`` are all that were asked for, best first.

    An image that is ``unknown`` to its task keeps its best class and probability.
    """
    error = scored.error
    return {
        "source": scored.source,
        "task": scored.task,
        "version": scored.version,
        "class_name": scored.class_name,
        "probability": scored.probability,
        "unknown": None if error else scored.unknown,
        "classes": [
            {"class_name": c.class_name, "probability": c.probability} for c in scored.classes
        ],
        "error_code": error.code if error else None,
        "error": " ".join(error.detail.split()) if error else None,
    }


@contextmanager
def open_table(path: Path, *, resume: bool = False) -> Iterator[Table]:
    """A table of the kind that the suffix names.

    Raises:
        ConfigInvalid: another suffix, or Parquet is to be taken up again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        with _parquet(path) as table:
            yield table
        return
    kind = _KINDS[path.suffix]
    going_on = resume and path.exists() and path.stat().st_size > 0
    # Line by line: what a row says is on disk before the next image is asked about.
    mode = "a" if going_on else "w"
    with path.open(mode, encoding="utf-8", errors=_ESCAPE, newline="", buffering=1) as file:
        yield kind(file, header=not going_on)


def check_output(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise ConfigInvalid where ``path`` cannot be written, or would lose what it holds."""
    if path.suffix not in (".parquet", *_KINDS):
        raise ConfigInvalid(
            f"{path} has no suffix that says which table to write; wanted .parquet, .csv or .jsonl."
        )
    if resume and path.suffix == ".parquet":
        raise ConfigInvalid(
            "A Parquet table is written when all is scored, so none can be taken up again. "
            "Use --resume with a .jsonl or .csv table."
        )
    if path.exists() and not resume and not overwrite:
        raise ConfigInvalid(f"{path} exists. Add --overwrite to replace it, or --resume to go on.")


def rows_done(path: Path) -> set[tuple[str, str]]:
    """The (source, task) pairs that a jsonl or CSV table holds.

    A last line that was cut short by the end of its run is removed from the file.

    Raises:
        ConfigInvalid: it is no table of ours; it stays as it is.
    """
    if not path.exists() or path.stat().st_size == 0:
        return set()
    with path.open("rb+") as file:
        try:
            rows = _KINDS[path.suffix].rows(_whole_lines(file))
            done = {(row["source"], row["task"]) for row in rows}
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ConfigInvalid(
                f"{path} is not a table that this command wrote ({error!r}). Name another file."
            ) from error
        _cut_last_line(file)
    return done


def _whole_lines(file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file):
        if line.endswith(b"\n"):
            yield line.decode("utf-8", _ESCAPE)
        elif number == 0:
            raise ValueError("it has no whole line")


def _cut_last_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65_536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            file.truncate(start + newline + 1)
            return
        end = start


class _Jsonl:
    def __init__(self, file: IO[str], *, header: bool) -> None:
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")

    @staticmethod
    def rows(lines: Iterable[str]) -> Iterator[Row]:
        return map(json.loads, lines)


class _Csv:
    def __init__(self, file: IO[str], *, header: bool) -> None:
        self._writer = csv.DictWriter(file, COLUMNS)
        if header:
            self._writer.writeheader()

    def write(self, row: Row) -> None:
        self._writer.writerow({**row, "classes": json.dumps(row["classes"])})

    @staticmethod
    def rows(lines: Iterable[str]) -> Iterator[Row]:
        reader = csv.DictReader(lines, strict=True)
        if reader.fieldnames != list(COLUMNS):
            raise ValueError(f"its columns are {reader.fieldnames}")
        return iter(reader)


_KINDS: dict[str, type[_Jsonl] | type[_Csv]] = {".jsonl": _Jsonl, ".csv": _Csv}


class _Parquet:
    """Writes a row group whenever enough rows are there."""

    def __init__(self, writer: "pq.ParquetWriter") -> None:
        self._writer = writer
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        # A path may hold bytes that are no UTF-8; Arrow's strings may not.
        source = row["source"].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self._rows.append({**row, "source": source})
        if len(self._rows) >= ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, _schema()))
        self._rows = []


def _schema() -> "pa.Schema":
    import pyarrow as pa

    score = pa.struct([("class_name", pa.string()), ("probability", pa.float64())])
    kinds: dict[str, pa.DataType] = {
        "probability": pa.float64(),
        "unknown": pa.bool_(),
        "classes": pa.list_(score),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])


@contextmanager
def _parquet(path: Path) -> Iterator[Table]:
    """The path holds the old table or the whole new one, never a part of it."""
    import pyarrow.parquet as pq

    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, _schema(), compression="zstd") as writer,
    ):
        table = _Parquet(writer)
        yield table
        table.flush()
