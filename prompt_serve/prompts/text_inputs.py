"""Assembled sequences -> the inputs of a bundle's text graph.

A graph has a fixed list of inputs, but a prompt reaches into as many blocks as it likes, with as
many vectors. So there is one row for each block and place, and beside it whether it is used; a row
that is not used leaves the features as they are.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_serve.errors import PromptFileInvalid
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
    """The arrays of ``TEXT_INPUTS``; ``bundle`` says what each of them is.

    Args:
        sequences: of one prompt.
        layers: how many blocks the text tower has.

    Raises:
        PromptFileInvalid: the prompt has vectors for another number of blocks.
    """
    _check_blocks(sequences, layers)
    places, width = sequences.prefix.shape
    deeper = np.zeros((layers, places, width), dtype=np.float32)
    deeper_used = np.zeros((layers, places), dtype=np.bool_)
    for block, vectors in enumerate(sequences.deeper, start=1):
        deeper[block, 1 : 1 + len(vectors)] = vectors
        deeper_used[block, 1 : 1 + len(vectors)] = True
    # One row at least: not every execution provider takes an array without elements.
    most = max([1, *map(len, sequences.keys_values)])
    keys_values = np.zeros((layers, most, width), dtype=np.float32)
    keys_values_used = np.zeros((layers, most), dtype=np.bool_)
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
            f"The prompt has vectors for {prompted} blocks; the text tower has {layers}. "
            f"Train it again with a depth of at most {layers}."
        )
    if with_rows not in (0, layers):
        raise PromptFileInvalid(
            f"The prompt has keys and values for {with_rows} blocks; the text tower has {layers}, "
            f"and each wants its own. Train it again on this backbone."
        )
