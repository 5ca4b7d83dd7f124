"""Indices in a few bits: packed bytes against an oracle that goes bit by bit."""

import numpy as np
import pytest
from numpy.typing import NDArray

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.quantized_tensor import BITS, QuantizedTensor, dequantize, pack, unpack
from tests.golden import to_float16


def bit_by_bit(indices: NDArray[np.uint8], bits: int) -> list[int]:
    """The bytes that ``docs/prompt-file.md`` describes: bit k of index i is bit ``i bits + k``."""
    stream = [int(index) >> k & 1 for index in indices.ravel() for k in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return [
        sum(bit << place for place, bit in enumerate(stream[first : first + 8]))
        for first in range(0, len(stream), 8)
    ]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (2, 3, 4), (0, 4)])
def test_packed_indices_are_the_bits_in_their_order(
    rng: np.random.Generator, bits: int, shape: tuple[int, ...]
) -> None:
    indices = rng.integers(0, 2**bits, size=shape).astype(np.uint8)
    packed = pack(indices, bits)
    assert packed.tolist() == bit_by_bit(indices, bits)
    assert (unpack(packed, bits, shape) == indices).all()
    assert unpack(packed, bits, shape).dtype == np.uint8


def test_packed_indices_written_out() -> None:
    assert pack(np.array([1, 0, 0, 0, 0, 0, 0, 1, 1], np.uint8), 1).tolist() == [0b1000_0001, 1]
    assert pack(np.array([3, 0, 1, 2, 1], np.uint8), 2).tolist() == [0b10_01_00_11, 1]
    assert pack(np.array([15, 1, 7], np.uint8), 4).tolist() == [0x1F, 0x07]


@pytest.mark.parametrize(("bits", "size_bytes"), [(1, 260), (2, 520), (4, 1_056), (8, 2_560)])
def test_2048_numbers_take_the_bytes_of_the_paper(bits: int, size_bytes: int) -> None:
    quantized = QuantizedTensor(
        indices=np.zeros((4, 512), np.uint8), codebook=to_float16(np.linspace(-1, 1, 2**bits))
    )
    assert quantized.nbytes == size_bytes
    assert quantized.nbytes == pack(quantized.indices, bits).nbytes + quantized.codebook.nbytes
    assert (quantized.bits, quantized.size, quantized.shape) == (bits, 2_048, (4, 512))


def test_the_numbers_are_looked_up() -> None:
    quantized = QuantizedTensor(
        indices=np.array([[0, 3, 1], [2, 2, 0]], np.uint8), codebook=to_float16([-1, 0.5, 2, 65504])
    )
    assert dequantize(quantized).tolist() == [[-1, 65504, 0.5], [2, 2, -1]]
    assert dequantize(quantized).dtype == np.float16
    plain = to_float16([[1, 2]])
    assert dequantize(plain) is plain


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        ([0], r"uint8 \(1,\).*take 2 bytes"),
        ([0, 0, 0], r"uint8 \(3,\).*take 2 bytes"),
        ([0, 0b100], "bits after the last packed index are not zero"),
        ([0, 0x80], "bits after the last packed index are not zero"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(packed: list[int], reason: str) -> None:
    with pytest.raises(PromptFileInvalid, match=reason):
        unpack(np.array(packed, np.uint8), 2, (5,))


@pytest.mark.parametrize(
    ("indices", "codebook", "reason"),
    [
        ([0], to_float16([1, 2, 3]), "expected 2, 4, 16 or 256 numbers"),
        ([0], to_float16([[1, 2]]), "expected 2, 4, 16 or 256 numbers"),
        ([0], to_float16([]), "expected 2, 4, 16 or 256 numbers"),
        ([0], to_float16([1, np.nan]), "finite float16"),
        ([0], to_float16([1, np.inf]), "finite float16"),
        ([0], np.array([1, 2], np.float32), "finite float16"),
        ([2], to_float16([1, 2]), "not bytes below 2"),
    ],
)
def test_a_codebook_that_contradicts_its_indices_is_refused(
    indices: list[int], codebook: NDArray[np.float16], reason: str
) -> None:
    with pytest.raises(PromptFileInvalid, match=reason):
        QuantizedTensor(indices=np.array(indices, np.uint8), codebook=codebook)


def test_indices_are_bytes() -> None:
    with pytest.raises(PromptFileInvalid, match=r"int64 \(2,\)"):
        unpack(np.array([0, 0]), 2, (5,))
    with pytest.raises(PromptFileInvalid, match="not bytes below 2"):
        QuantizedTensor(indices=np.array([0, 1]), codebook=to_float16([1, 2]))
