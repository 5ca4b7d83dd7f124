"""Parts of an output: one Parquet file per shard, written as a whole, found again by its name.

A part's name has the number of its shard and a digest of all that its content depends on, so that a
run finds what an earlier run with the same inputs has finished.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
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
_ROWS_PER_GROUP = 65_536


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
        self, name: str, schema: "pa.Schema", facts: dict[str, Any]
    ) -> "Iterator[PartWriter]":
        """Open a part, which appears when the block ends without an error.

        Args:
            name: of the part.
            schema: of its tables.
            facts: stored in its metadata.
        """
        import pyarrow.parquet as pq

        metadata = {METADATA_KEY: json.dumps(facts).encode()}
        with (
            self._file(name) as path,
            pq.ParquetWriter(path, schema.with_metadata(metadata), compression="zstd") as writer,
        ):
            part = PartWriter(writer)
            yield part
            part.flush()

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
    """Writes tables to a part, in row groups of a useful size."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, table: "pa.Table") -> None:
        """Append a table."""
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows >= _ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what waits for its row group."""
        import pyarrow as pa

        if self._waiting:
            self._writer.write_table(
                pa.concat_tables(self._waiting).unify_dictionaries(), row_group_size=_ROWS_PER_GROUP
            )
        self._waiting, self._rows = [], 0


def _upload(filesystem: Any, local: Path, inner: str) -> None:
    filesystem.makedirs(os.path.dirname(inner), exist_ok=True)  # noqa: PTH120  # not a local path
    filesystem.put_file(str(local), inner)  # an object appears whole
