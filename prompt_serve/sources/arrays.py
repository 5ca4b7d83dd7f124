"""Shards of embeddings in NumPy's files (.npy)."""

import ast
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prompt_serve.errors import DatasetInvalid
from prompt_serve.sources.files import open_binary
from prompt_serve.sources.shard import EmbeddingBatch

NPY_SUFFIX = ".npy"
_MAX_HEADER_BYTES = 10_000
# What reading a header may raise; the last two of brackets in brackets.
_NO_HEADER = (
    *(ValueError, KeyError, TypeError, SyntaxError, OverflowError),
    *(RecursionError, MemoryError),
)


@dataclass(frozen=True)
class ArrayShard:
    """Some rows of an array (N, E), named by the file and their numbers."""

    path: str
    first_row: int
    n_rows: int
    width: int  # E
    dtype: str
    data_offset: int  # of the first row of the array, in bytes
    fingerprint: None = None

    @property
    def name(self) -> str:
        return f"{self.path} rows {self.first_row}+{self.n_rows}"

    @property
    def size(self) -> int:
        return self.n_rows

    def batches(self, rows: int) -> Iterator[EmbeddingBatch]:
        dtype = np.dtype(self.dtype)
        row_bytes = self.width * dtype.itemsize
        with open_binary(self.path) as file:
            file.seek(self.data_offset + self.first_row * row_bytes)
            for start in range(0, self.n_rows, rows):
                n = min(rows, self.n_rows - start)
                data = file.read(n * row_bytes)
                if len(data) < n * row_bytes:
                    raise DatasetInvalid(f"{self.path} is cut short.", [])
                vectors = np.frombuffer(data, dtype).reshape(n, self.width)
                first = self.first_row + start
                names = [f"{self.path}#{row}" for row in range(first, first + n)]
                yield EmbeddingBatch(names, vectors.astype(np.float32, copy=False), {})


def array_shards(path: str, *, rows_per_shard: int) -> Sequence[ArrayShard]:
    """Split a .npy file into shards.

    Raises:
        DatasetInvalid: not a file with a two-dimensional array of floating-point numbers.
    """
    with open_binary(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
            header = ast.literal_eval(file.read(min(length, _MAX_HEADER_BYTES)).decode("latin-1"))
            shape, in_columns = tuple(header["shape"]), header["fortran_order"]
            dtype = np.dtype(str(header["descr"]))  # None would be a type
        except _NO_HEADER as error:
            raise DatasetInvalid(f"{path} is not a NumPy file: {error}", []) from error
        offset = file.tell()
        data_bytes = file.seek(0, os.SEEK_END) - offset
    sizes = [size for size in shape if isinstance(size, int) and size >= 0]
    if len(sizes) != 2 or len(shape) != 2 or not sizes[1] or dtype.kind != "f" or in_columns:
        order = " in Fortran order" if in_columns else ""
        raise DatasetInvalid(
            f"{path} has {dtype} {shape}{order}; expected floating-point numbers (images, width) "
            f"in C order.",
            [],
        )
    n_rows, width = sizes
    expected = n_rows * width * dtype.itemsize
    if data_bytes < expected:
        raise DatasetInvalid(
            f"{path} is cut short: {n_rows:,} rows of {width:,} numbers take {expected:,} bytes, "
            f"and it has {data_bytes:,}.",
            [],
        )
    return [
        ArrayShard(path, start, min(rows_per_shard, n_rows - start), width, dtype.str, offset)
        for start in range(0, n_rows, rows_per_shard)
    ]
