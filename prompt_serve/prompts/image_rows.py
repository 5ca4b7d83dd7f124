"""Lay out a task's image vectors as rows of the prompted image graph (see ``bundle``).

What a block makes of a vector matters only where a later block reads it. Vectors that the next
block replaces, those of the last block, and ADAPT's rows are keys and values of their block: they
are projected once, when the task is loaded. The vectors of the last prompted block go on through
the later blocks: they enter the sequence there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.types import FloatArray

MAX_ROWS = 256  # per block; a batch takes memory for as many of each image
MAX_VALUE = 65_504.0  # largest number of float16, in which some engines compute

# context (M, D), rows (L, R, D) -> context behind ln_pre, keys, values, of the same shapes
ProjectRows = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray, FloatArray]]


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """Image vectors of one task, ready for the prompted image graph.

    Args:
        entering: (M, D) rows that enter the sequence; behind ``ln_pre`` for the first block.
        block: block at whose input they enter, from 0.
        keys: (n, D) projected keys of every block.
        values: values of the same rows.
    """

    entering: FloatArray
    block: int
    keys: tuple[FloatArray, ...]
    values: tuple[FloatArray, ...]

    @cached_property
    def digest(self) -> bytes:
        """Digest of the content: images with equal rows need one pass, whatever the task."""
        parts = (self.entering, np.int64(self.block), *self.keys, *self.values)
        sizes = np.array([len(self.entering), *map(len, self.keys)], dtype=np.int64)
        return sha256(b"".join([sizes.tobytes(), *(part.tobytes() for part in parts)])).digest()

    @property
    def size_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(array.nbytes for array in (self.entering, *self.keys, *self.values))


def lay_out(
    vectors: PromptVectors[FloatArray], *, layers: int, width: int, project: ProjectRows
) -> ImageRows:
    """Lay out the folded image branch of a prompt.

    Args:
        vectors: result of ``folding.fold_image``; not empty.
        layers: L, blocks of the image tower.
        width: D, its width.
        project: the bundle's row graph.

    Raises:
        PromptFileInvalid: the vectors are for another tower.
    """
    _check(vectors, layers, width)
    nothing = np.zeros((0, width), dtype=np.float32)
    context = nothing if vectors.context is None else vectors.context
    blocks = [context, *vectors.deeper]  # of the prompted blocks
    last = len(blocks) - 1
    if len(context):
        normed, _, _ = project(context, np.zeros((layers, 1, width), dtype=np.float32))
        blocks[0] = normed
    # The outputs of the last block's own vectors are read by nobody.
    entering = blocks[last] if last < layers - 1 else nothing
    read_once = blocks[:last] if last < layers - 1 else blocks
    rows = [*read_once, *[nothing] * (layers - len(read_once))]
    if vectors.keys_values:
        rows = [np.concatenate(pair) for pair in zip(rows, vectors.keys_values, strict=True)]
    _, keys, values = project(np.zeros((1, width), dtype=np.float32), _padded(rows, width))
    return ImageRows(
        entering=entering,
        block=last,
        keys=tuple(of[: len(own)] for of, own in zip(keys, rows, strict=True)),
        values=tuple(of[: len(own)] for of, own in zip(values, rows, strict=True)),
    )


def image_inputs(
    images: Sequence[ImageRows | None], *, layers: int, width: int, in_steps: bool = False
) -> dict[str, NDArray[Any]]:
    """Return the inputs of the prompted image graph for B images, without the pixels.

    Args:
        images: rows of each image's task; None without.
        layers: L, blocks of the image tower.
        width: D, its width.
        in_steps: round M and R up to a power of two, for a device that plans each new shape.

    Returns:
        rows (B, M, D), rows_block (B,), rows_used (B, M), keys and values (L, B, R, D) and
        keys_used (L, B, R), with M and R at least 1.
    """
    prompted = [rows for rows in images if rows is not None]
    # At least one: some execution providers reject arrays without elements.
    m = max([1, *(len(rows.entering) for rows in prompted)])
    r = max([1, *(len(keys) for rows in prompted for keys in rows.keys)])
    if in_steps:
        m, r = (1 << (length - 1).bit_length() for length in (m, r))
    rows = np.zeros((len(images), m, width), dtype=np.float32)
    rows_block = np.full(len(images), layers, dtype=np.int64)  # behind the last one: nowhere
    rows_used = np.zeros((len(images), m), dtype=np.bool_)
    keys, values = (np.zeros((layers, len(images), r, width), dtype=np.float32) for _ in range(2))
    keys_used = np.zeros((layers, len(images), r), dtype=np.bool_)
    for index, of in enumerate(images):
        if of is None:
            continue
        rows[index, : len(of.entering)] = of.entering
        rows_block[index] = of.block
        rows_used[index, : len(of.entering)] = True
        for block, (own_keys, own_values) in enumerate(zip(of.keys, of.values, strict=True)):
            keys[block, index, : len(own_keys)] = own_keys
            values[block, index, : len(own_keys)] = own_values
            keys_used[block, index, : len(own_keys)] = True
    return {
        "rows": rows,
        "rows_block": rows_block,
        "rows_used": rows_used,
        "keys": keys,
        "values": values,
        "keys_used": keys_used,
    }


def _padded(rows: Sequence[FloatArray], width: int) -> FloatArray:
    """Return rows of L blocks as (L, R, D), R at least 1."""
    longest = max([1, *map(len, rows)])
    padded = np.zeros((len(rows), longest, width), dtype=np.float32)
    for block, own in enumerate(rows):
        padded[block, : len(own)] = own
    return padded


def _check(vectors: PromptVectors[FloatArray], layers: int, width: int) -> None:
    given = [vectors.context] if vectors.context is not None else []
    tensors = (*given, *vectors.deeper, *vectors.keys_values)
    widths = {tensor.shape[-1] for tensor in tensors}
    prompted = 1 + len(vectors.deeper)
    if widths - {width} or prompted > layers or len(vectors.keys_values) not in (0, layers):
        raise PromptFileInvalid(
            f"The image branch has vectors {sorted(widths)} wide for {prompted} blocks, and keys "
            f"and values for {len(vectors.keys_values)}; the image tower has {layers} blocks and "
            f"is {width} wide. Train the prompt again on this backbone."
        )
    rows = max([len(tensor) for tensor in tensors], default=0)
    if rows > MAX_ROWS:
        raise PromptFileInvalid(
            f"The image branch has {rows:,} vectors for one block; at most {MAX_ROWS:,} are "
            f"accepted."
        )
    # No probe shows what these do to an image. Projections may make them of any size.
    largest = float(np.max([np.abs(tensor).max(initial=0.0) for tensor in tensors], initial=0.0))
    if not largest <= MAX_VALUE:
        raise PromptFileInvalid(
            f"The vectors of the image branch have values up to {largest:.3g}; at most "
            f"{MAX_VALUE:,.0f} are accepted. Train the prompt again with a smaller learning rate."
        )
