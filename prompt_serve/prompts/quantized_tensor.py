"""A tensor as indices into a small codebook (Quantized Prompt, section 4.2).

Any tensor of a prompt file is either its float16 numbers or coded: ``2**b`` float16 numbers, and
for each element the b-bit index of one of them. N elements take ``ceil(b N / 8)`` bytes for the
indices and ``2 * 2**b`` for the codebook; 2,048 numbers at one bit take 260.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.types import HalfArray

BITS = (1, 2, 4, 8)  # widths that fill a byte without a rest


@dataclass(frozen=True, kw_only=True)
class Coded:
    """Indices (any shape) into a codebook of ``2**b`` numbers, already de-normalized."""

    indices: NDArray[np.uint8]
    codebook: HalfArray

    def __post_init__(self) -> None:
        if self.codebook.ndim != 1 or self.codebook.size not in [2**bits for bits in BITS]:
            raise PromptFileInvalid(
                f"The codebook has shape {self.codebook.shape}; wanted 2, 4, 16 or 256 numbers."
            )
        if self.codebook.dtype != np.float16 or not np.isfinite(self.codebook).all():
            raise PromptFileInvalid(
                "The codebook wants finite float16 numbers. If it was learned here, the training "
                "diverged; train again with a smaller learning rate."
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
        """How many numbers it stands for."""
        return self.indices.size

    @property
    def nbytes(self) -> int:
        """Bytes in a file: packed indices and codebook."""
        return -(-self.size * self.bits // 8) + self.codebook.nbytes

    def numbers(self) -> HalfArray:
        """The tensor itself."""
        values: HalfArray = self.codebook[self.indices]
        return values


Stored = HalfArray | Coded


def numbers(tensor: Stored) -> HalfArray:
    """A stored tensor as plain float16 numbers."""
    return tensor.numbers() if isinstance(tensor, Coded) else tensor


def pack(indices: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Indices in row-major order, the first in the lowest bits of the first byte."""
    per_byte = 8 // bits
    flat = np.zeros(-(-indices.size // per_byte) * per_byte, dtype=np.uint8)
    flat[: indices.size] = indices.ravel()
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(
        flat.reshape(-1, per_byte) << shifts, axis=1
    ).astype(np.uint8)
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The opposite of ``pack``.

    Raises:
        PromptFileInvalid: the bytes are not as many as the shape wants, or the rest is not zero.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != np.uint8 or packed.shape != (-(-size * bits // 8),):
        raise PromptFileInvalid(
            f"The packed indices are {packed.dtype} {packed.shape}; {size:,} indices of {bits} "
            f"bits want {-(-size * bits // 8):,} bytes."
        )
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    flat = ((packed[:, np.newaxis] >> shifts) & np.uint8(2**bits - 1)).ravel()
    if flat[size:].any():
        raise PromptFileInvalid("The bits behind the last packed index are not zero.")
    return flat[:size].reshape(shape)
