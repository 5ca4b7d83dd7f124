"""Read the rows of CSV, JSON and Parquet tables, as spreadsheets and other programs write them."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompt_serve.errors import DatasetInvalid
from prompt_serve.sources.files import is_url, read_file, size_of, version_of
from prompt_serve.sources.tables import (
    IMAGE_COLUMNS,
    TABLE_SUFFIXES,
    TableShard,
    column_kind,
    label_names,
    opened_table,
    table_shards,
)
from prompt_serve.text_files import decode_text, is_utf8, local_path, not_utf8
from prompt_serve.training.data.dataset import limited
from prompt_serve.training.data.image_store import ImageStore

LABEL_SEPARATOR = ";"  # between the labels of an image
DELIMITERS = (",", ";", "\t", "|")
TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
_PATH_COLUMNS = ("path", "file_name", "filename")
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|:])\r?\n")  # Excel's first line, as in "sep=;"
_PACKED = ("bytes", "struct")  # kinds of columns that hold images
_ROWS_PER_BATCH = 65_536
_ROWS_PER_SHARD = 1024  # of images, whose copies are made together
_LONGEST_CELL = 2**20  # characters; a path or label has far fewer
_MAX_TEXT_BYTES = 512 * 2**20
_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
_WHOLE = re.compile(r"(-?\d+)\.0+")

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Names of the columns of a table; None: those that such columns usually have."""

    image: str | None = None
    label: str | None = None

    @property
    def label_name(self) -> str:
        """Name of the column of labels, in lower case."""
        return "label" if self.label is None else _column_name(self.label)

    def image_name(self, columns: Sequence[str], packed: Sequence[str] = ()) -> str:
        """Return the name of the column of images, or the one that is missing.

        Args:
            columns: of the table.
            packed: those of them that hold the bytes of images, and come before paths.
        """
        if self.image is not None:
            return _column_name(self.image)
        return next((name for name in (*packed, *_PATH_COLUMNS) if name in columns), "path")


USUAL_COLUMNS = ColumnNames()


@dataclass(kw_only=True)
class Table:
    """Rows with ``path``, ``label`` and, where the table has parts, ``split``.

    Values have no spaces around them. ``file`` of a row is its image on this machine, and
    ``source`` the name of the image if that file is a copy.
    """

    rows: list[Row]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_utf8: str = ""  # says that the file's text is not UTF-8; empty where it is


@dataclass(kw_only=True)
class _Cells:
    """All cells of a table of texts, by column name in lower case."""

    columns: list[str]
    rows: list[Row]
    faults: list[str] = field(default_factory=list)
    not_utf8: str = ""


def is_table(path: str) -> bool:
    """Return True for the suffixes of tables."""
    return path.lower().endswith((*TEXT_SUFFIXES, *TABLE_SUFFIXES))


def read_table_rows(path: str, columns: ColumnNames, store: ImageStore) -> Table:
    """Read a .csv, .tsv, .json, .jsonl, .parquet, .arrow or .feather file, or its URL.

    The delimiter of a CSV file is the one that finds most of the expected columns. Labels that
    are whole numbers written as fractions (1.0) are read as whole numbers. Images that are in the
    table or in an object store are copied.

    Raises:
        DatasetInvalid: the file is not a table, or cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return _read_arrow(path, columns, store)
    if suffix in (".csv", ".tsv"):
        cells = _read_csv(path, ("label", "split", *_PATH_COLUMNS, *_named(columns)))
    elif suffix in TEXT_SUFFIXES:
        cells = _read_json(path)
    else:
        raise DatasetInvalid(
            f"{path} is not a dataset file; expected a .csv, .tsv, .json, .jsonl, .parquet or "
            f".arrow table, or a .tar archive.",
            [],
        )
    image = columns.image_name(cells.columns)
    if faults := _column_faults(cells.columns, image, columns):
        return Table(rows=[], faults=faults)
    names = {"path": image, "label": columns.label_name, "split": "split"}
    names = {key: name for key, name in names.items() if name in cells.columns}
    rows = [{key: row[name] for key, name in names.items()} for row in cells.rows]
    table = Table(rows=rows, faults=cells.faults, not_utf8=cells.not_utf8)
    locate(table, path, store)
    return table


def _named(columns: ColumnNames) -> list[str]:
    return [_column_name(name) for name in (columns.image, columns.label) if name is not None]


def _column_faults(columns: Sequence[str], image: str, names: ColumnNames) -> list[str]:
    listed = ", ".join(filter(None, columns)) or "none"
    options = {image: "--image-column", names.label_name: "--label-column"}
    return [
        f"column {name!r} is missing; the table has {listed} (name the column with {option})"
        for name, option in options.items()
        if name not in columns
    ] + [
        f"{columns.count(name)} columns are called {name!r}"
        for name in (*options, "split")
        if columns.count(name) > 1
    ]


def locate(table: Table, path: str, store: ImageStore) -> None:
    """Find the images of rows that name them by path: relative to the table, or a URL.

    Those in an object store are copied; a row whose URL does not exist gets no ``file``.
    """
    _without_fractions(table.rows)
    base = path.rpartition("/")[0]
    urls: dict[int, str] = {}  # by the index of the row
    for number, row in enumerate(table.rows):
        if row.get("file") or not row["path"]:
            continue
        if is_url(row["path"]):
            urls[number] = row["path"]
        elif is_url(path):
            urls[number] = f"{base}/{row['path'].removeprefix('./')}"
        else:
            row["file"] = str(local_path(row["path"], Path(path).parent))
    if not urls:
        return
    copies = store.fetch(urls.values())
    for number, url in urls.items():
        table.rows[number]["source"] = url
        if url in copies:
            table.rows[number]["file"] = str(copies[url])


def _read_json(path: str) -> _Cells:
    """Read objects: one per line, or a list of them."""
    text = _text_of(path)
    try:
        if path.lower().endswith(".json"):
            entries = json.loads(text)
        else:
            entries = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DatasetInvalid(f"{path} is not JSON: {error}.", []) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DatasetInvalid(
            f"{path} is not a table: expected objects such as "
            f'{{"file_name": "1.jpg", "label": "cat"}}.',
            [],
        )
    columns = list(dict.fromkeys(_column_name(name) for entry in entries for name in entry))
    rows = [{_column_name(name): value for name, value in entry.items()} for entry in entries]
    return _Cells(
        columns=columns,
        rows=[_row(columns, [row.get(name) for name in columns]) for row in rows],
    )


def _text_of(path: str) -> str:
    try:
        if (size := size_of(path)) > _MAX_TEXT_BYTES:
            raise DatasetInvalid(
                f"{path} has {size:,} bytes; a table of text may have at most "
                f"{_MAX_TEXT_BYTES:,}. Split it, or save it as Parquet.",
                [],
            )
        return decode_text(read_file(path))
    except FileNotFoundError as error:
        raise DatasetInvalid(f"There is no folder or file {path}.", []) from error


def _read_csv(path: str, expected: Sequence[str]) -> _Cells:
    text = _text_of(path)
    content, delimiters = text.lstrip("\r\n"), list(DELIMITERS)
    if separator := _SEPARATOR_LINE.match(content):
        content, delimiters = content[separator.end() :], [str(separator[1])]
    elif path.lower().endswith(".tsv"):
        delimiters.insert(0, "\t")
    csv.field_size_limit(_LONGEST_CELL)
    try:
        header = max(
            (_header(content, delimiter) for delimiter in delimiters),
            key=lambda one: len(set(one[1]) & set(expected)),
        )
        lines = [
            line for line in list(_reader(content, header[0]))[1:] if any(map(str.strip, line))
        ]
    except csv.Error as error:
        raise DatasetInvalid(f"{path} is not a CSV file: {error}.", []) from error
    columns = header[1]
    return _Cells(
        columns=columns,
        rows=[_row(columns, line) for line in lines],
        faults=_line_faults(columns, lines),
        not_utf8="" if is_utf8(text) else not_utf8(Path(path), text),
    )


def _reader(content: str, delimiter: str) -> Iterator[list[str]]:
    # Not io.StringIO, which makes a copy of four bytes per character.
    lines = (line[0] for line in _LINE.finditer(content))
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _header(content: str, delimiter: str) -> tuple[str, list[str]]:
    line = next(_reader(content, delimiter), [])
    return delimiter, [_column_name(name) for name in line]


def _column_name(name: str) -> str:
    return name.strip().strip("'\"").strip().lower()


def _row(columns: Sequence[str], values: Sequence[Any]) -> Row:
    """Return stripped text by column; missing values are empty."""
    texts = ["" if _missing(value) else as_text(value) for value in values]
    return dict(zip(columns, texts + [""] * len(columns), strict=False))


def as_text(value: Any) -> str:
    """Return a cell as a CSV table has it; a list of labels is joined."""
    return LABEL_SEPARATOR.join(map(str, value)) if isinstance(value, list) else str(value).strip()


def _missing(value: Any) -> bool:
    return value is None or value != value  # NaN is the only value unlike itself


def _line_faults(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return a line for each row with more values than the header has names."""
    return limited(
        [
            f"row {number} has {len(line)} values and the header {len(columns)}; put a value that "
            f"contains the delimiter into double quotes"
            for number, line in enumerate(lines, start=1)
            if any(map(str.strip, line[len(columns) :]))
        ]
    )


def _read_arrow(path: str, names: ColumnNames, store: ImageStore) -> Table:
    """Read labels, and paths or bytes of images; the labels may be numbers of named classes."""
    with opened_table(path) as table:
        schema, size = table.schema, sum(table.group_sizes())
        by_name = {_column_name(name): name for name in reversed(schema.names)}
        columns = [_column_name(name) for name in schema.names]
        kinds = {name: column_kind(schema.field(by_name[name]).type) for name in by_name}
        image = names.image_name(
            columns, [name for name in IMAGE_COLUMNS if kinds.get(name) in _PACKED]
        )
        if faults := _column_faults(columns, image, names):
            return Table(rows=[], faults=faults)
        if kinds[image] not in (*_PACKED, "paths"):
            kind = schema.field(by_name[image]).type
            return Table(rows=[], faults=[f"column {image!r} has {kind}; expected images"])
        cells = {"label": by_name[names.label_name]}
        if "split" in by_name:
            cells["split"] = by_name["split"]
        if kinds[image] == "paths":
            cells["path"] = by_name[image]
        groups = range(len(table.group_sizes()))
        read = list(dict.fromkeys(cells.values()))
        values: dict[str, list[Any]] = {name: [] for name in read}
        for batch in table.batches(groups, read, _ROWS_PER_BATCH):
            for name in read:
                values[name] += batch.column(name).to_pylist()
        of_classes = {name: label_names(schema, name) for name in read}
    if (found_rows := len(values[read[0]])) != size:
        raise DatasetInvalid(f"{path} says that it has {size:,} rows; it has {found_rows:,}.", [])
    rows: list[Row] = [{} for _ in range(size)]
    for key, name in cells.items():
        for row, value in zip(rows, _named_values(values[name], of_classes[name]), strict=True):
            row[key] = "" if _missing(value) else as_text(value)
    found = Table(rows=rows)
    if kinds[image] in _PACKED:
        _unpack(found, path, by_name[image], store)
    locate(found, path, store)
    return found


def _named_values(values: Sequence[Any], names: Sequence[str]) -> Iterator[Any]:
    """Replace the numbers of named classes by the names; -1 stands for no class."""

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(one) for one in value]
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        return names[value] if 0 <= value < len(names) else None if value < 0 else value

    return map(name, values) if names else iter(values)


def _unpack(table: Table, path: str, column: str, store: ImageStore) -> None:
    """Copy the images in a column of bytes; a row group whose copies are there is not read."""
    version = version_of(path)
    origin = path if is_url(path) else str(Path(path).absolute())
    places = [store.place(f"{origin}#{row} {column}", version) for row in range(len(table.rows))]
    shards = table_shards(path, rows_per_shard=_ROWS_PER_SHARD, column=column)
    with store.progress.bar("reading images", len(table.rows), "img") as advance:
        for shard in shards:
            assert isinstance(shard, TableShard)  # noqa: S101  # for the type checker
            _unpack_shard(table, path, shard, places, version, store)
            advance(shard.n_rows)


def _unpack_shard(
    table: Table,
    path: str,
    shard: TableShard,
    places: Sequence[Path],
    version: str | None,
    store: ImageStore,
) -> None:
    rows = range(shard.first_row, shard.first_row + shard.n_rows)
    there = [store.holds(places[row], version) for row in rows]
    for row in rows:
        table.rows[row]["path"] = f"{path}#{row}"
    for row, item in zip(rows, () if all(there) else shard.items(), strict=False):
        if isinstance(item.data, bytes):
            store.keep(places[row], item.data)
        elif item.data is None:  # the image is in a file of its own
            table.rows[row]["path"] = item.source
            if not is_url(item.source):
                table.rows[row]["file"] = item.source
        else:  # an empty file is an unreadable image, as in a folder
            store.keep(places[row], b"")
    for row in rows:
        if places[row].is_file():
            table.rows[row] |= {"file": str(places[row]), "source": f"{path}#{row}"}


def _without_fractions(rows: Sequence[Row]) -> None:
    """Write labels such as 1.0 as 1, where all labels are whole numbers written so, or empty."""
    given = [row["label"] for row in rows if row["label"]]
    if given and all(map(_WHOLE.fullmatch, given)):
        for row in rows:
            row["label"] = row["label"].partition(".")[0]
