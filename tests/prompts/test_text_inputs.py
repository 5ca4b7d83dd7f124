import numpy as np
import pytest

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.prompts.text_inputs import TEXT_INPUTS, text_inputs
from prompt_serve.types import FloatArray

LAYERS, WIDTH = 3, 4


def sequences(
    deeper: tuple[FloatArray, ...] = (), keys_values: tuple[FloatArray, ...] = ()
) -> Sequences:
    return Sequences(
        prefix=np.zeros((4, WIDTH), dtype=np.float32),
        suffix=np.zeros((2, 5, WIDTH), dtype=np.float32),
        eot=np.asarray([4, 3]),
        deeper=deeper,
        keys_values=keys_values,
    )


def rows(count: int, value: float) -> FloatArray:
    return np.full((count, WIDTH), value, dtype=np.float32)


def test_a_plain_prompt_uses_nothing_and_every_array_has_elements() -> None:
    inputs = text_inputs(sequences(), LAYERS)

    assert tuple(inputs) == TEXT_INPUTS
    assert not inputs["deeper_used"].any()
    assert not inputs["keys_values_used"].any()
    assert all(array.size for array in inputs.values())


def test_vectors_of_deeper_blocks_stand_behind_start_of_text() -> None:
    inputs = text_inputs(sequences(deeper=(rows(2, 1.0), rows(2, 2.0))), LAYERS)

    used = inputs["deeper_used"]
    assert used.tolist() == [[False] * 4, *[[False, True, True, False]] * 2]
    assert (inputs["deeper"][1][used[1]] == 1.0).all()
    assert (inputs["deeper"][2][used[2]] == 2.0).all()


def test_keys_and_values_fill_as_many_rows_as_their_block_has() -> None:
    inputs = text_inputs(sequences(keys_values=(rows(1, 1.0), rows(0, 0.0), rows(3, 3.0))), LAYERS)

    used = inputs["keys_values_used"]
    assert used.tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert inputs["keys_values"][used].tolist() == [[1.0] * WIDTH, *[[3.0] * WIDTH] * 3]


def test_another_number_of_blocks_is_refused() -> None:
    with pytest.raises(PromptFileInvalid, match=r"4 blocks; the text tower has 3.*at most 3"):
        text_inputs(sequences(deeper=(rows(1, 0.0),) * 3), LAYERS)
    with pytest.raises(PromptFileInvalid, match="values for 2 blocks; the text tower has 3"):
        text_inputs(sequences(keys_values=(rows(1, 0.0),) * 2), LAYERS)
