"""Plain context vectors of one branch: what any encoding folds to, and what a tower takes."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")  # FloatArray where prompts are used, torch.Tensor where they are learned


@dataclass(frozen=True, kw_only=True)
class PromptVectors(Generic[T]):
    """Learned vectors of the text or of the image tower.

    Args:
        context: (M, D) vectors that stand in the sequence, or (C, M, D) where every class has its
            own (text only). Text: in place of the words before the class name. Image: behind the
            patches, without a position (MaPLe). None: nothing is put in.
        deeper: J - 1 tensors (M, D); number j replaces the context at the input of block j + 1
            (deep prompts: VPT, MaPLe).
        keys_values: one tensor (n, D) for each block of the tower, or none at all; they join the
            block's input of keys and values only, in front of its layer norm (ADAPT, equation 7).
    """

    context: T | None = None
    deeper: tuple[T, ...] = ()
    keys_values: tuple[T, ...] = ()

    @property
    def is_deep(self) -> bool:
        """Whether blocks behind the first get vectors of their own."""
        return bool(self.deeper or self.keys_values)
