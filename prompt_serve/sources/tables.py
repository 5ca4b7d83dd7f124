"""Shards of Parquet and Arrow tables: image bytes, image paths, or embeddings.

Columns are found by name and type: ``embedding`` (a list of numbers), ``image`` or ``bytes``
(binary, or the structure of Hugging Face datasets with ``bytes`` and ``path``), ``path``,
``file_name`` or ``source`` (text).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_serve.errors import DatasetInvalid, DependencyMissing, ImageInvalid
from prompt_serve.sources.files import is_url, open_binary
from prompt_serve.sources.shard import EmbeddingBatch, Item
from prompt_serve.types import FloatArray

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather")
METADATA_KEY = b"prompt_serve"
_EMBEDDINGS = ("embedding", "embeddings", "vector", "features")
IMAGE_COLUMNS = ("image", "images", "bytes", "image_bytes", "data", "jpg", "png", "webp")
_PATHS = ("path", "file_name", "filename", "source", "url", "file")
_ARROW_FILE = b"ARROW1"  # first bytes of a file; a stream has none
# Rows of a dictionary may be large and many, and take no bytes of the file.
_IMAGES_PER_BATCH = 1
_PATHS_PER_BATCH = 64
_NUMBERS_PER_BATCH = 2**26
_SHOWN_REASON = 300  # characters of a reason of Arrow's
_MAX_WIDTH = 2**20  # of an embedding, far more than any backbone has


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read."""

    kind: str  # embeddings, bytes, struct or paths
    column: str
    source: str | None  # column that names the rows; None: their numbers do
    error: tuple[str, str] | None = None  # columns with the code and text of errors


@dataclass(frozen=True)
class _Rows:
    """Rows of a table: some row groups or record batches."""

    path: str
    groups: tuple[int, ...]
    first_row: int
    n_rows: int
    columns: Columns

    @property
    def name(self) -> str:
        return f"{self.path} rows {self.first_row}+{self.n_rows} {self.columns.column}"

    @property
    def size(self) -> int:
        return self.n_rows

    def _rest(self, row: int) -> str:
        """Return a name for the rows that cannot be read, from ``row`` on."""
        return f"{self.path}#{row}-{self.first_row + self.n_rows - 1}"


@dataclass(frozen=True)
class TableShard(_Rows):
    """Rows of a table with images."""

    def items(self) -> Iterator[Item]:
        row = self.first_row
        rows = _PATHS_PER_BATCH if self.columns.kind == "paths" else _IMAGES_PER_BATCH
        for batch in _read(self, rows):
            if isinstance(batch, DatasetInvalid):
                yield Item(self._rest(row), ImageInvalid(batch.message))
                return
            names = _names(batch, self, row)
            values = _values(batch.column(self.columns.column))
            for name, value in zip(names, values, strict=True):
                yield _item(name, value, self)
            row += batch.num_rows


@dataclass(frozen=True)
class EmbeddingTableShard(_Rows):
    """Rows of a table with embeddings."""

    fingerprint: str | None

    def batches(self, rows: int) -> Iterator[EmbeddingBatch]:
        row = self.first_row
        for batch in _read(self, rows):
            if isinstance(batch, DatasetInvalid):
                nothing = np.full((1, 1), np.nan, dtype=np.float32)
                error = ImageInvalid.code, batch.message
                yield EmbeddingBatch([self._rest(row)], nothing, {0: error})
                return
            yield self._batch(batch, row)
            row += batch.num_rows

    def _batch(self, batch: "pa.RecordBatch", row: int) -> EmbeddingBatch:
        errors = {}
        if self.columns.error is not None:
            codes, texts = (list(_values(batch.column(name))) for name in self.columns.error)
            errors = {i: (code, texts[i] or code) for i, code in enumerate(codes) if code}
        vectors, missing = _vectors(batch.column(self.columns.column), self)
        for index in missing:
            errors.setdefault(index, (ImageInvalid.code, "The row has no embedding."))
        return EmbeddingBatch(_names(batch, self, row), vectors, errors)


def table_shards(
    path: str, *, rows_per_shard: int, column: str | None
) -> Sequence[TableShard | EmbeddingTableShard]:
    """Split a table at its row groups or record batches.

    Args:
        path: Parquet file, Arrow file or Feather file, or its URL.
        rows_per_shard: a shard has at least so many rows, except the last one.
        column: column to read; None: by name and type.

    Raises:
        DatasetInvalid: not such a file, or no column has images or embeddings.
    """
    with opened_table(path) as table:
        columns = _columns(path, table.schema, column)
        fingerprint = _fingerprint(table.schema)
        sizes = table.group_sizes()
    shards: list[TableShard | EmbeddingTableShard] = []
    groups: list[int] = []
    start = row = 0
    for group, size in enumerate(sizes):
        groups.append(group)
        row += size
        if row - start >= rows_per_shard or group == len(sizes) - 1:
            if columns.kind == "embeddings":
                shards.append(
                    EmbeddingTableShard(
                        path, tuple(groups), start, row - start, columns, fingerprint
                    )
                )
            else:
                shards.append(TableShard(path, tuple(groups), start, row - start, columns))
            groups, start = [], row
    return [shard for shard in shards if shard.n_rows]


class _Parquet:
    def __init__(self, file: Any) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(file, memory_map=False)
        self.schema: pa.Schema = self._file.schema_arrow

    def group_sizes(self) -> list[int]:
        metadata = self._file.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def batches(
        self, groups: Sequence[int], columns: list[str], rows: int
    ) -> "Iterator[pa.RecordBatch]":
        widest = max([1, *map(self._width, groups)])
        if widest > _MAX_WIDTH:
            raise _invalid(
                f"it has rows of {widest:,} numbers; at most {_MAX_WIDTH:,} are accepted"
            )
        rows = max(1, min(rows, _NUMBERS_PER_BATCH // widest))
        for group in groups:  # one by one: those before a damaged one are read
            yield from self._file.iter_batches(rows, row_groups=[group], columns=columns)

    def _width(self, group: int) -> int:
        """Return the numbers per row of the widest column."""
        about = self._file.metadata.row_group(group)
        values = (about.column(index).num_values for index in range(about.num_columns))
        return int(max(values, default=0) // max(1, about.num_rows))


class _Arrow:
    def __init__(self, file: Any) -> None:
        import pyarrow as pa

        self._file = file
        begin = file.read(len(_ARROW_FILE))
        file.seek(0)
        self._whole = pa.ipc.open_file(file) if begin == _ARROW_FILE else None
        # A stream, as Hugging Face datasets saves them: batches can be read in turn only.
        self.schema: pa.Schema = (self._whole or pa.ipc.open_stream(file)).schema

    def group_sizes(self) -> list[int]:
        return [batch.num_rows for _, batch in self._read()]

    def batches(
        self, groups: Sequence[int], columns: list[str], rows: int
    ) -> "Iterator[pa.RecordBatch]":
        for _, whole in self._read(groups):
            batch = whole.select(columns)
            # What an Arrow file says of its buffers is not checked when it is read.
            batch.validate(full=True)
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)

    def _read(self, groups: Sequence[int] | None = None) -> "Iterator[tuple[int, pa.RecordBatch]]":
        """Yield record batches with their numbers; None: all."""
        import pyarrow as pa

        if self._whole is not None:
            every = range(self._whole.num_record_batches)
            for group in every if groups is None else groups:
                yield group, self._whole.get_batch(group)
            return
        self._file.seek(0)
        last = None if groups is None else max(groups, default=-1)
        for group, batch in enumerate(pa.ipc.open_stream(self._file)):
            if groups is None or group in groups:
                yield group, batch
            if group == last:
                return


@contextmanager
def opened_table(path: str) -> Iterator[_Parquet | _Arrow]:
    """Open a Parquet, Arrow or Feather file, or its URL.

    Raises:
        DatasetInvalid: not such a file.
        DependencyMissing: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DependencyMissing(
            "Reading Parquet needs pyarrow: pip install 'prompt-serve[tables]'"
        ) from error

    kind = _Parquet if path.lower().endswith((".parquet", ".pq")) else _Arrow
    # A memory-mapped Arrow file takes no memory for what is not read.
    opened = open_binary(path) if is_url(path) or kind is _Parquet else pa.memory_map(path)
    with opened as file:
        try:
            yield kind(file)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk or the network; what is wrong with the content has no number
            name = "a Parquet" if kind is _Parquet else "an Arrow"
            reason = " ".join(str(error).split())[:_SHOWN_REASON]
            raise DatasetInvalid(
                f"{path} is not {name} file, or is damaged: {reason}", []
            ) from error


def _invalid(reason: str) -> Exception:
    """Return an error that ``opened_table`` completes with the path."""
    import pyarrow as pa

    return pa.ArrowInvalid(reason)


def label_names(schema: "pa.Schema", column: str) -> tuple[str, ...]:
    """Return the names of a column's classes that Hugging Face datasets keep in the schema."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = found["info"]["features"][column]
        names = feature.get("names") or feature["feature"]["names"]  # the latter of a list
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()
    return tuple(map(str, names))


def _read(shard: _Rows, rows: int) -> "Iterator[pa.RecordBatch | DatasetInvalid]":
    """Yield the rows of a shard; where the file is damaged, the error, and no more."""
    of = shard.columns
    names = [of.column, *([of.source] if of.source else []), *(of.error or ())]
    try:
        with opened_table(shard.path) as table:
            yield from table.batches(shard.groups, list(dict.fromkeys(names)), rows)
    except DatasetInvalid as error:
        yield error


def _values(column: "pa.Array[Any]") -> Iterator[Any]:
    """Yield values one by one; None for a text that is not UTF-8."""
    for value in column:
        try:
            yield value.as_py()
        except UnicodeDecodeError:
            yield None


def _columns(path: str, schema: "pa.Schema", column: str | None) -> Columns:
    import pyarrow as pa

    names = schema.names
    if column is not None and column not in names:
        raise DatasetInvalid(f"{path} has no column {column!r}; it has {', '.join(names)}.", [])
    by_name = {name.lower(): name for name in reversed(names)}
    candidates = (
        [column]
        if column is not None
        else [by_name[name] for name in (*_EMBEDDINGS, *IMAGE_COLUMNS, *_PATHS) if name in by_name]
    )
    for name in candidates:
        kind = column_kind(schema.field(name).type)
        if kind is not None:
            sources = [
                by_name[one]
                for one in _PATHS
                if one in by_name and pa.types.is_string(_plain(schema.field(by_name[one]).type))
            ]
            error = ("error_code", "error") if {"error_code", "error"} <= set(names) else None
            return Columns(
                kind,
                name,
                name if kind == "paths" else next(iter(sources), None),
                error if kind == "embeddings" else None,
            )
    raise DatasetInvalid(
        f"{path} has no column of images or embeddings that is known by its name; it has "
        f"{', '.join(names)}. Name the column: --column NAME",
        [],
    )


def column_kind(kind: "pa.DataType") -> str | None:
    """Return what a column of a type may hold: embeddings, bytes, struct or paths; else None."""
    import pyarrow as pa

    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "embeddings" if types.is_floating(kind.value_type) else None
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    if types.is_struct(kind):
        return "struct" if kind.get_field_index("bytes") >= 0 else None
    return "paths" if types.is_string(_plain(kind)) else None


def _plain(kind: "pa.DataType") -> "pa.DataType":
    """Return the type of the values of a dictionary, and of long texts that of texts."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if pa.types.is_large_string(kind) else kind


def _names(batch: "pa.RecordBatch", shard: _Rows, row: int) -> list[str]:
    """Return names of the rows: of their column, else of the file and the number."""
    column = shard.columns.source
    values = [None] * batch.num_rows if column is None else _values(batch.column(column))
    return [
        f"{shard.path}#{row + index}" if value is None else value
        for index, value in enumerate(values)
    ]


def _item(name: str, value: Any, shard: TableShard) -> Item:
    if isinstance(value, dict):  # of a Hugging Face dataset
        path, value = value.get("path"), value.get("bytes")
        if shard.columns.source is None and path:
            name = path
        if value is None:
            return _file_item(name, path, shard)
    if shard.columns.kind == "paths":
        return _file_item(name, value, shard)
    if value is None:
        return Item(name, ImageInvalid("The row has no image."))
    return Item(name, value)


def _file_item(name: str, path: str | None, shard: TableShard) -> Item:
    """Return the image of a path, which is relative to the table."""
    if not path:
        return Item(name, ImageInvalid("The row has no image."))
    if is_url(path) or Path(path).is_absolute():
        return Item(path, None)
    return Item(f"{shard.path.rpartition('/')[0] or '.'}/{path}", None)


def _vectors(column: Any, shard: EmbeddingTableShard) -> tuple[FloatArray, list[int]]:
    """Return embeddings (B, E), and the indices of rows that have none, which become NaN."""
    import pyarrow as pa

    missing = np.flatnonzero(~np.asarray(column.is_valid()))
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
    else:
        lengths = np.asarray(column.value_lengths().drop_null())
        width = int(lengths[0]) if len(lengths) else 0
        if (lengths != width).any():
            raise DatasetInvalid(
                f"{shard.path} has embeddings of {lengths.min()} to {lengths.max()} numbers in "
                f"column {shard.columns.column!r}; all must have the same length.",
                [],
            )
    values = np.asarray(column.drop_null().flatten(), dtype=np.float32).reshape(-1, width)
    if not len(missing):
        return values, []
    vectors = np.full((len(column), width), np.nan, dtype=np.float32)
    vectors[np.asarray(column.is_valid())] = values
    return vectors, missing.tolist()


def _fingerprint(schema: "pa.Schema") -> str | None:
    """Return the backbone's fingerprint in the metadata of embeddings that were saved here."""
    try:
        found = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except ValueError:
        return None
    fingerprint = found.get("fingerprint") if isinstance(found, dict) else None
    return fingerprint if isinstance(fingerprint, str) else None
