"""Convert assembled sequences to the inputs of a bundle's text graph.

A graph has a fixed list of inputs, but prompts differ in the blocks they reach and in the number of
vectors per block. So every input has a row for each block and position, with a flag that says if
the row is used; unused rows do not change the features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_serve.errors import PromptFileInvalid, counted
from prompt_serve.prompts.sequences import Sequences

TEXT_INPUTS = (
    "prefix",
    "suffix",
    "eot",
    "deeper",
    "deeper_used",
    "keys_values",
    "keys_values_used",
)


def text_inputs(sequences: Sequences, layers: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of ``TEXT_INPUTS`` by name; ``bundle`` describes them.

    Args:
        sequences: assembled sequences of one prompt, prefix (P, D) and suffix (C, S, D).
        layers: L, number of blocks of the text tower.

    Returns:
        prefix (P, D), suffix (C, S, D), eot (C,), deeper (L, P, D), deeper_used (L, P),
        keys_values (L, K, D) and keys_values_used (L, K), with K at least 1.

    Raises:
        PromptFileInvalid: the prompt has vectors for more blocks than the tower has, or keys and
            values for another number of blocks.
    """
    _check_blocks(sequences, layers)
    positions, width = sequences.prefix.shape  # P, D
    deeper = np.zeros((layers, positions, width), dtype=np.float32)
    deeper_used = np.zeros((layers, positions), dtype=np.bool_)
    # Position 0 is start-of-text; the context follows.
    for block, vectors in enumerate(sequences.deeper, start=1):
        deeper[block, 1 : 1 + len(vectors)] = vectors
        deeper_used[block, 1 : 1 + len(vectors)] = True
    # At least one row: some execution providers reject arrays without elements.
    k_max = max([1, *map(len, sequences.keys_values)])
    keys_values = np.zeros((layers, k_max, width), dtype=np.float32)
    keys_values_used = np.zeros((layers, k_max), dtype=np.bool_)
    for block, rows in enumerate(sequences.keys_values):
        keys_values[block, : len(rows)] = rows
        keys_values_used[block, : len(rows)] = True
    return {
        "prefix": sequences.prefix,
        "suffix": sequences.suffix,
        "eot": sequences.eot,
        "deeper": deeper,
        "deeper_used": deeper_used,
        "keys_values": keys_values,
        "keys_values_used": keys_values_used,
    }


def _check_blocks(sequences: Sequences, layers: int) -> None:
    prompted, with_rows = 1 + len(sequences.deeper), len(sequences.keys_values)
    if prompted > layers:
        raise PromptFileInvalid(
            f"The prompt has vectors for {counted(prompted, 'block')}; the text tower has "
            f"{layers}. Train it again with a depth of at most {layers}."
        )
    if with_rows not in (0, layers):
        raise PromptFileInvalid(
            f"The prompt has keys and values for {counted(with_rows, 'block')}; the text tower "
            f"has {layers}, and each needs its own. Train it again on this backbone."
        )
