"""Parts of an output: one Parquet file per shard, written as a whole, found again by its name.

A part's name has the number of its shard and a digest of all that its content depends on, so that a
run finds what an earlier run with the same inputs has finished.
"""

import base64
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_serve.files import atomic_file
from prompt_serve.sources.files import filesystem_of, is_url
from prompt_serve.sources.tables import METADATA_KEY

if TYPE_CHECKING:
    import pyarrow as pa

PART_SUFFIX = ".parquet"
_ROWS_PER_GROUP = 2**19
_ROWS_PER_BATCH = 2**16  # that a column is encoded in; 1024 by default, which costs a third more
_BYTES_PER_GROUP = 128 * 2**20
_SCHEMA_KEY = "ARROW:schema"  # where Arrow looks for the types that Parquet does not have


@dataclass(frozen=True)
class PartFolder:
    """Folder of parts, local or of an object store."""

    path: str

    def __contains__(self, name: str) -> bool:
        path = self.join(name)
        if not is_url(path):
            return Path(path).exists()
        filesystem, inner = filesystem_of(path)
        filesystem.invalidate_cache()
        return bool(filesystem.exists(inner))

    def names(self) -> list[str]:
        """Return the names of the finished parts, sorted."""
        if is_url(self.path):
            filesystem, inner = filesystem_of(self.path)
            filesystem.invalidate_cache()
            found = filesystem.ls(inner, detail=False) if filesystem.isdir(inner) else []
            names = [name.rpartition("/")[2] for name in found]
        else:
            folder = Path(self.path)
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(
            name for name in names if name.startswith("part-") and name.endswith(PART_SUFFIX)
        )

    def join(self, name: str) -> str:
        """Return the path of a part."""
        return f"{self.path.rstrip('/')}/{name}"

    def remove(self, names: Sequence[str]) -> None:
        """Remove some parts."""
        for name in names:
            if is_url(self.path):
                filesystem, inner = filesystem_of(self.join(name))
                filesystem.rm_file(inner)
            else:
                Path(self.join(name)).unlink(missing_ok=True)

    @contextmanager
    def writer(
        self,
        name: str,
        schema: "pa.Schema",
        facts: dict[str, Any],
        encoded: "pa.Schema | None" = None,
    ) -> "Iterator[PartWriter]":
        """Open a part, which appears when the block ends without an error.

        Args:
            name: of the part.
            schema: of the part, as readers find it.
            facts: stored in its metadata.
            encoded: schema of the tables, if some texts of theirs are dictionaries.
        """
        import pyarrow.parquet as pq

        described = schema.with_metadata({METADATA_KEY: json.dumps(facts).encode()})
        metadata = {
            METADATA_KEY.decode(): json.dumps(facts),
            _SCHEMA_KEY: base64.b64encode(described.serialize().to_pybytes()).decode(),
        }
        with (
            self._file(name) as path,
            pq.ParquetWriter(
                path,
                encoded or schema,
                compression="zstd",
                use_dictionary=list(_texts(schema)),  # type: ignore[arg-type]  # lists are allowed
                write_statistics=list(_sought(schema)),
                write_batch_size=_ROWS_PER_BATCH,
                store_schema=False,  # which would be the encoded one
            ) as writer,
            ThreadPoolExecutor(1, "write") as pool,
        ):
            writer.add_key_value_metadata(metadata)
            part = PartWriter(writer, pool)
            yield part
            part.finish()

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        if not is_url(self.path):
            with atomic_file(Path(self.join(name))) as temporary:
                yield temporary
            return
        filesystem, inner = filesystem_of(self.join(name))
        with tempfile.TemporaryDirectory(prefix="prompt-serve-") as folder:
            local = Path(folder) / name
            yield local
            _upload(filesystem, local, inner)


class PartWriter:
    """Writes tables to a part, in row groups of a useful size, while the next ones are made.

    At most two row groups are in memory: one that grows, and one that is written.
    """

    def __init__(self, writer: Any, pool: ThreadPoolExecutor) -> None:
        self._writer = writer
        self._pool = pool
        self._growing: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._written: Future[None] | None = None

    def write(self, table: "pa.Table") -> None:
        """Append a table; errors of earlier ones may be raised here."""
        self._rows += table.num_rows
        self._bytes += table.nbytes
        if self._growing and (self._rows > _ROWS_PER_GROUP or self._bytes > _BYTES_PER_GROUP):
            self._start_group()
            self._rows, self._bytes = table.num_rows, table.nbytes
        self._growing.append(table)

    def finish(self) -> None:
        """Write what is left, and wait."""
        if self._growing:
            self._start_group()
        self._wait()

    def _start_group(self) -> None:
        self._wait()
        self._written = self._pool.submit(self._write_group, self._growing)
        self._growing = []

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _write_group(self, tables: "list[pa.Table]") -> None:
        import pyarrow as pa

        whole = tables[0] if len(tables) == 1 else pa.concat_tables(tables).unify_dictionaries()
        self._writer.write_table(whole, row_group_size=_ROWS_PER_GROUP)


def _texts(fields: "Iterable[pa.Field[Any]]", prefix: str = "") -> Iterator[str]:
    """Yield the paths of columns of texts, which repeat; numbers hardly do."""
    import pyarrow as pa

    for field in fields:
        path, kind = prefix + field.name, field.type
        while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            path, kind = f"{path}.list.element", kind.value_type
        if pa.types.is_struct(kind):
            yield from _texts(kind, f"{path}.")
        elif pa.types.is_string(kind) or pa.types.is_dictionary(kind):
            yield path


def _sought(schema: "pa.Schema") -> Iterator[str]:
    """Yield the columns by whose extremes a reader can skip row groups.

    Those of a dictionary are about the same in all, and cost as much as its indices.
    """
    import pyarrow as pa

    for field in schema:
        if not (pa.types.is_dictionary(field.type) or pa.types.is_nested(field.type)):
            yield field.name


def _upload(filesystem: Any, local: Path, inner: str) -> None:
    filesystem.makedirs(os.path.dirname(inner), exist_ok=True)  # noqa: PTH120  # not a local path
    filesystem.put_file(str(local), inner)  # an object appears whole
