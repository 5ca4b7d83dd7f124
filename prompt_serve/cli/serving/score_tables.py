"""Write scores to a table on disk: JSON lines and CSV row by row, Parquet at the end.

JSON lines and CSV contain every row as soon as it is known, so an interrupted run can be resumed.
A Parquet file appears only when it is complete.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol

from prompt_serve.cli.output_file import cannot_write
from prompt_serve.cli.user_path import DASH
from prompt_serve.client import ScoredImage
from prompt_serve.errors import ConfigInvalid
from prompt_serve.files import atomic_file, check_writable
from prompt_serve.sources.tables import METADATA_KEY
from prompt_serve.text_files import LONGEST_FIELD

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
    "labels",
    "classes",
    "error_code",
    "error",
)
ROWS_PER_GROUP = 10_000
_ESCAPE = "surrogateescape"  # as in os.fsdecode: paths may contain bytes that are not UTF-8

Row = dict[str, Any]


class ScoreTable(Protocol):
    """Table that rows are appended to."""

    def write(self, row: Row) -> None:
        """Append a row with the keys COLUMNS."""


def row_of(scored: ScoredImage) -> Row:
    """Return the columns of a row; ``classes`` has the ``top_k`` classes, best first.

    ``labels`` has the labels of a multi-label task that reach their threshold, and is None for
    other tasks. An ``unknown`` image keeps its best class and probability.
    """
    error = scored.error
    return {
        "source": scored.source,
        "task": scored.task,
        "version": scored.version,
        "class_name": scored.class_name,
        "probability": scored.probability,
        "unknown": None if error else scored.unknown,
        "labels": None if scored.labels is None else list(scored.labels),
        "classes": [
            {"class_name": c.class_name, "probability": c.probability} for c in scored.classes
        ],
        "error_code": error.code if error else None,
        "error": " ".join(error.detail.split()) if error else None,
    }


@contextmanager
def open_table(
    path: Path, *, resume: bool = False, stdout_format: str = "jsonl"
) -> Iterator[ScoreTable]:
    """Open a table for writing, in the format of its suffix (see ``check_output``).

    Args:
        path: .parquet, .csv or .jsonl file, or - for standard output; missing parent folders are
            created.
        resume: append to an existing .csv or .jsonl table.
        stdout_format: jsonl or csv, of a table on standard output.
    """
    if path == DASH:
        stream = io.TextIOWrapper(
            sys.stdout.buffer,
            encoding="utf-8",
            errors=_ESCAPE,
            newline="",
            line_buffering=True,
        )
        try:
            yield _LINE_TABLES[f".{stdout_format}"](stream, header=True)
        finally:
            stream.detach()  # otherwise it would close standard output
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if _suffix(path) == ".parquet":
        with _parquet(path) as table:
            yield table
        return
    kind = _LINE_TABLES[_suffix(path)]
    appending = resume and path.exists() and path.stat().st_size > 0
    mode = "a" if appending else "w"
    # Line buffered, so that a row is on disk before the next one is scored.
    with path.open(mode, encoding="utf-8", errors=_ESCAPE, newline="", buffering=1) as file:
        yield kind(file, header=not appending)


def check_output(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise ConfigInvalid if the table cannot be written, or would overwrite existing data."""
    if path == DASH:
        if resume:
            raise ConfigInvalid("A table on standard output cannot be resumed; name a file.")
        return
    if _suffix(path) not in (".parquet", *_LINE_TABLES):
        raise ConfigInvalid(
            f"{path} has no known table format; expected the suffix .parquet, .csv or .jsonl."
        )
    if resume and _suffix(path) == ".parquet":
        raise ConfigInvalid(
            "A Parquet table cannot be resumed, because it is written when all images are scored. "
            "Use --resume with a .jsonl or .csv table."
        )
    try:
        check_writable(path, in_place=_suffix(path) in _LINE_TABLES)
    except OSError as error:
        raise ConfigInvalid(cannot_write(path, error)) from error
    if path.exists() and not resume and not overwrite:
        raise ConfigInvalid(
            f"{path} exists. Add --overwrite to replace it, or --resume to append to it."
        )


def kept_rows(path: Path) -> str:
    """Return the sentence that says what is left of a table whose writing failed."""
    if _suffix(path) == ".parquet":
        return (
            "A Parquet table is written as a whole, and none was; a .jsonl or .csv table keeps "
            "the rows so far."
        )
    return "It holds the rows so far; --resume scores the others."


def _suffix(path: Path) -> str:
    return path.suffix.lower()


@dataclass(frozen=True)
class TableContents:
    """What a table already contains, by (source, task)."""

    done: set[tuple[str, str]] = field(default_factory=set)
    failed: set[tuple[str, str]] = field(default_factory=set)  # rows with an error only
    versions: dict[str, set[str]] = field(default_factory=dict)  # per task


def read_contents(path: Path) -> TableContents:
    """Read which rows a JSON lines or CSV table contains.

    An incomplete last line, left by an interrupted run, is removed from the file.

    Raises:
        ConfigInvalid: not a table of this command; the file is left unchanged.
    """
    contents = TableContents()
    if not path.exists() or path.stat().st_size == 0:
        return contents
    with path.open("rb+") as file:
        try:
            for row in _LINE_TABLES[_suffix(path)].rows(_whole_lines(file)):
                pair = (row["source"], row["task"])
                (contents.failed if row.get("error_code") else contents.done).add(pair)
                if version := row.get("version"):
                    contents.versions.setdefault(row["task"], set()).add(version)
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ConfigInvalid(
                f"{path} was not written by this command ({error!r}). Choose another file."
            ) from error
        _cut_last_line(file)
    contents.failed.difference_update(contents.done)
    return contents


def check_versions(path: Path, contents: TableContents, current: Mapping[str, str | None]) -> None:
    """Raise ConfigInvalid if a table has rows of another version of a task.

    Args:
        path: the table.
        contents: what it contains.
        current: version that each task has now; None if it is not known.
    """
    for task, version in current.items():
        others = sorted(contents.versions.get(task, set()) - {version})
        if version is not None and others:
            raise ConfigInvalid(
                f"{path} has rows of task {task!r} by version {others[0][:12]}, but the service "
                f"now has version {version[:12]}. Write another table, score all images again "
                f"(--overwrite), or append rows of the new version all the same (--mix-versions)."
            )


def remove_failed(path: Path, pairs: Set[tuple[str, str]]) -> None:
    """Remove the rows with an error of some (source, task) pairs from a table."""
    kind = _LINE_TABLES[_suffix(path)]
    with (
        path.open("rb") as old,
        atomic_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors=_ESCAPE, newline="") as file,
    ):
        table = kind(file, header=True)
        for row in kind.rows(_whole_lines(old)):
            if not (row.get("error_code") and (row["source"], row["task"]) in pairs):
                table.write(row)


def _whole_lines(file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file):
        if line.endswith(b"\n"):
            yield line.decode("utf-8", _ESCAPE)
        elif number == 0:
            raise ValueError("no complete line")


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


class _JsonlTable:
    def __init__(self, file: IO[str], *, header: bool) -> None:
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")

    @staticmethod
    def rows(lines: Iterable[str]) -> Iterator[Row]:
        return map(json.loads, lines)


class _CsvTable:
    def __init__(self, file: IO[str], *, header: bool) -> None:
        self._writer = csv.DictWriter(file, COLUMNS)
        if header:
            self._writer.writeheader()

    def write(self, row: Row) -> None:
        labels = None if row["labels"] is None else json.dumps(row["labels"])
        self._writer.writerow({**row, "labels": labels, "classes": json.dumps(row["classes"])})

    @staticmethod
    def rows(lines: Iterable[str]) -> Iterator[Row]:
        csv.field_size_limit(LONGEST_FIELD)  # a row with many classes is long
        reader = csv.DictReader(lines, strict=True)
        if reader.fieldnames != list(COLUMNS):
            raise ValueError(f"unexpected columns {reader.fieldnames}")
        return (
            {
                **row,
                "labels": json.loads(row["labels"]) if row["labels"] else None,
                "classes": json.loads(row["classes"]),
            }
            for row in reader
        )


_LINE_TABLES: dict[str, type[_JsonlTable] | type[_CsvTable]] = {
    ".jsonl": _JsonlTable,
    ".csv": _CsvTable,
}


class _ParquetTable:
    """Writes one row group per ROWS_PER_GROUP rows."""

    def __init__(self, writer: "pq.ParquetWriter") -> None:
        self._writer = writer
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        # A path may contain bytes that are not UTF-8; Arrow strings may not: they are escaped.
        source = row["source"].encode("utf-8", "backslashreplace").decode("utf-8")
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
        "labels": pa.list_(pa.string()),
        "classes": pa.list_(score),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])


@contextmanager
def _parquet(path: Path) -> Iterator[ScoreTable]:
    """Write a Parquet table; the path has the old table or the complete new one at any time."""
    import pyarrow.parquet as pq

    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, _schema(), compression="zstd") as writer,
    ):
        table = _ParquetTable(writer)
        yield table
        table.flush()


def join_parts(parts: Sequence[Path], path: Path) -> None:
    """Join Parquet parts to one table, in the format of its suffix.

    Args:
        parts: at least one, in order.
        path: .parquet, .csv or .jsonl file; replaced if it exists.
    """
    import pyarrow.parquet as pq

    if _suffix(path) == ".parquet":
        schema = _schema_of_all(pq.read_schema(parts[0]))
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for part in parts:
                with pq.ParquetFile(part) as file:
                    for group in range(file.num_row_groups):
                        writer.write_table(file.read_row_group(group).cast(schema))
        return
    with open_table(path) as table:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(ROWS_PER_GROUP):
                    for row in batch.to_pylist():
                        table.write(row)


def _schema_of_all(schema: "pa.Schema") -> "pa.Schema":
    """Return the schema of a part without what its metadata says about that part alone."""
    facts = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    facts.pop("shard", None)
    return schema.with_metadata({METADATA_KEY: json.dumps(facts).encode()})
