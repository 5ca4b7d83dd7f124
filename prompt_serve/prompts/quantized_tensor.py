"""Quantized tensor: indices into a small codebook (Quantized Prompt, section 4.2).

Any tensor of a prompt file is either float16 or quantized to b bits: a codebook of ``2**b`` float16
numbers, and one b-bit index per element. N elements take ``ceil(b N / 8)`` bytes for the indices
and ``2 * 2**b`` for the codebook; 2,048 elements at one bit take 260 bytes.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.types import HalfArray

BITS = (1, 2, 4, 8)  # widths that divide a byte


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """Tensor of any shape as indices into a codebook of ``2**b`` numbers, already denormalized."""

    indices: NDArray[np.uint8]  # shape of the tensor
    codebook: HalfArray  # (2**b,)

    def __post_init__(self) -> None:
        if self.codebook.ndim != 1 or self.codebook.size not in [2**bits for bits in BITS]:
            raise PromptFileInvalid(
                f"The codebook has shape {self.codebook.shape}; expected 2, 4, 16 or 256 numbers."
            )
        if self.codebook.dtype != np.float16 or not np.isfinite(self.codebook).all():
            raise PromptFileInvalid(
                "The codebook must have finite float16 numbers. If it was learned here, the "
                "training diverged; train again with a smaller learning rate."
            )
        if self.indices.dtype != np.uint8 or (
            self.indices.size and int(self.indices.max()) >= self.codebook.size
        ):
            raise PromptFileInvalid(
                f"The indices are not bytes below {self.codebook.size}, the codebook's size."
            )

    @property
    def bits(self) -> int:
        return int(self.codebook.size).bit_length() - 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.indices.shape

    @property
    def ndim(self) -> int:
        return self.indices.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.indices.size

    @property
    def nbytes(self) -> int:
        """Bytes in a prompt file: packed indices and codebook."""
        return quantized_bytes(self.shape, self.bits)

    def dequantize(self) -> HalfArray:
        """Look up every index: float16, of the shape of the indices."""
        values: HalfArray = self.codebook[self.indices]
        return values


def quantized_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Return the bytes of a quantized tensor in a prompt file: packed indices and codebook."""
    return -(-math.prod(shape) * bits // 8) + (2 << bits)


StoredTensor = HalfArray | QuantizedTensor


def dequantize(tensor: StoredTensor) -> HalfArray:
    """Return a stored tensor as plain float16 numbers of the same shape."""
    return tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor


def pack(indices: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack indices in row-major order, the first into the lowest bits of the first byte."""
    per_byte = 8 // bits
    flat = np.zeros(-(-indices.size // per_byte) * per_byte, dtype=np.uint8)
    flat[: indices.size] = indices.ravel()
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(
        flat.reshape(-1, per_byte) << shifts, axis=1
    ).astype(np.uint8)
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Undo ``pack``.

    Raises:
        PromptFileInvalid: the number of bytes does not match the shape, or the unused bits of the
            last byte are not zero.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != np.uint8 or packed.shape != (-(-size * bits // 8),):
        raise PromptFileInvalid(
            f"The packed indices are {packed.dtype} {packed.shape}; {size:,} indices of {bits} "
            f"bits take {-(-size * bits // 8):,} bytes."
        )
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    flat = ((packed[:, np.newaxis] >> shifts) & np.uint8(2**bits - 1)).ravel()
    if flat[size:].any():
        raise PromptFileInvalid("The bits after the last packed index are not zero.")
    return flat[:size].reshape(shape)
