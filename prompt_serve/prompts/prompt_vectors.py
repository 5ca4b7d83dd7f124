"""Plain context vectors of one branch: the result of folding and the input of a tower."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")  # FloatArray when prompts are used, torch.Tensor when they are learned


@dataclass(frozen=True, kw_only=True)
class PromptVectors(Generic[T]):
    """Learned vectors of the text or the image tower.

    Args:
        context: (M, D) vectors in the sequence, or (C, M, D) if class-specific (text only). In the
            text tower they replace the words before the class name; in the image tower they follow
            the patches and have no position embedding (MaPLe). None inserts nothing.
        deeper: J - 1 tensors (M, D); number j replaces the context at the input of block j + 1
            (deep prompts: VPT, MaPLe).
        keys_values: one tensor (n, D) per block of the tower, or empty. They join the block's input
            to keys and values only, before its layer norm (ADAPT, equation 7).
    """

    context: T | None = None
    deeper: tuple[T, ...] = ()
    keys_values: tuple[T, ...] = ()
