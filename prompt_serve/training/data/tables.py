"""Read the rows of CSV and Parquet tables, as spreadsheets and other programs write them."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompt_serve.errors import DatasetInvalid, DependencyMissing
from prompt_serve.text_files import LONGEST_FIELD, is_utf8, not_utf8, read_text
from prompt_serve.training.data.dataset import limited

LABEL_SEPARATOR = ";"  # between the labels of an image
DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|:])\r?\n")  # Excel's first line, as in "sep=;"
_WHOLE = re.compile(r"(-?\d+)\.0+")

Row = dict[str, str]


@dataclass(kw_only=True)
class Table:
    """Rows by column name; names are in lower case, values without spaces around them."""

    columns: list[str]
    rows: list[Row]
    faults: list[str] = field(default_factory=list)
    not_utf8: str = ""  # says that the file's text is not UTF-8; empty where it is


def read_rows(path: Path, expected: Sequence[str]) -> Table:
    """Read a .csv, .tsv or .parquet file.

    The delimiter of a CSV file is the one that finds most of the ``expected`` columns. Labels that
    are whole numbers written as fractions (1.0) are read as whole numbers.

    Raises:
        DatasetInvalid: the file is not a table.
    """
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        table = _read_parquet(path)
    elif suffix in (".csv", ".tsv"):
        table = _read_csv(path, expected)
    else:
        raise DatasetInvalid(
            f"{path} is not a dataset file; expected a .csv, .tsv, .parquet or .json file.", []
        )
    _without_fractions(table.rows, "label")
    return table


def _read_csv(path: Path, expected: Sequence[str]) -> Table:
    text = read_text(path)
    content, delimiters = text.lstrip("\r\n"), list(DELIMITERS)
    if separator := _SEPARATOR_LINE.match(content):
        content, delimiters = content[separator.end() :], [str(separator[1])]
    elif path.suffix.lower() == ".tsv":
        delimiters.insert(0, "\t")
    csv.field_size_limit(LONGEST_FIELD)
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
    return Table(
        columns=columns,
        rows=[_row(columns, line) for line in lines],
        faults=_line_faults(columns, lines),
        not_utf8="" if is_utf8(text) else not_utf8(path, text),
    )


def _reader(content: str, delimiter: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, skipinitialspace=True)


def _header(content: str, delimiter: str) -> tuple[str, list[str]]:
    line = next(_reader(content, delimiter), [])
    return delimiter, [_column_name(name) for name in line]


def _column_name(name: str) -> str:
    return name.strip().strip("'\"").strip().lower()


def _row(columns: Sequence[str], values: Sequence[Any]) -> Row:
    """Return stripped text by column; missing values are empty."""
    texts = ["" if _missing(value) else _text(value) for value in values]
    return dict(zip(columns, texts + [""] * len(columns), strict=False))


def _text(value: Any) -> str:
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


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise DependencyMissing(
            "Reading Parquet needs pyarrow: pip install 'prompt-serve[tables]'"
        ) from error
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise DatasetInvalid(f"{path} is not a Parquet file: {error}", []) from error
    columns = [_column_name(name) for name in table.column_names]
    values = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return Table(columns=columns, rows=[_row(columns, row) for row in values])


def _without_fractions(rows: Sequence[Row], column: str) -> None:
    """Write 1.0 as 1 where every value of a column is a whole number written so, or is empty."""
    given = [row[column] for row in rows if row.get(column)]
    if given and all(map(_WHOLE.fullmatch, given)):
        for row in rows:
            row[column] = row[column].partition(".")[0]
