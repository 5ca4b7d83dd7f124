"""How a learned context is stored: the numbers themselves, or factors or codes that make them.

An encoding knows its tensors (all that a prompt file holds of it) and nothing of how they were
learned. ``folding.fold`` turns any of them into plain context vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.types import HalfArray

Base = Literal["template", "none"]


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The context itself (CoOp): (M, D), or (C, M, D) where every class has its own."""

    kind: ClassVar[str] = "dense"
    context: HalfArray

    def __post_init__(self) -> None:
        _check("context", self.context, dims=(2, 3))

    @property
    def n_ctx(self) -> int:
        return int(self.context.shape[-2])

    @property
    def width(self) -> int:
        return int(self.context.shape[-1])

    @property
    def n_classes(self) -> int | None:
        """C of a class-specific context, None of one that all classes share."""
        return int(self.context.shape[0]) if self.context.ndim == 3 else None

    def tensors(self) -> dict[str, HalfArray]:
        return {"context": self.context}

    def options(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """``P = P_init + P_A P_B`` (DIP, Alg. 3): factors (M, R) and (R, D).

    ``P_init`` is never stored. With base ``template`` it is the token embeddings of the template's
    words before the class name; with ``none`` it is zero.
    """

    kind: ClassVar[str] = "low_rank"
    p_a: HalfArray
    p_b: HalfArray
    base: Base = "template"

    def __post_init__(self) -> None:
        _check("p_a", self.p_a, dims=(2,))
        _check("p_b", self.p_b, dims=(2,))
        if self.p_a.shape[1] != self.p_b.shape[0]:
            raise PromptFileInvalid(
                f"The factors do not fit: p_a is {self.p_a.shape}, p_b is {self.p_b.shape}; "
                f"wanted (M, R) and (R, D)."
            )
        if self.base not in ("template", "none"):
            raise PromptFileInvalid(f"Unknown base {self.base!r}; wanted 'template' or 'none'.")

    @property
    def n_ctx(self) -> int:
        return int(self.p_a.shape[0])

    @property
    def width(self) -> int:
        return int(self.p_b.shape[1])

    @property
    def n_classes(self) -> int | None:
        return None

    def tensors(self) -> dict[str, HalfArray]:
        return {"p_a": self.p_a, "p_b": self.p_b}

    def options(self) -> dict[str, str]:
        return {"base": self.base}


Encoding = Dense | LowRank


def encoding_from(
    kind: str, tensors: Mapping[str, HalfArray], options: Mapping[str, str]
) -> Encoding:
    """Rebuild an encoding from what a prompt file holds.

    Raises:
        PromptFileInvalid: an unknown kind, or tensors that are missing, left over or inconsistent.
    """
    wanted = {"dense": {"context"}, "low_rank": {"p_a", "p_b"}}.get(kind)
    if wanted is None:
        raise PromptFileInvalid(
            f"Unknown encoding {kind!r}; this version reads 'dense' and 'low_rank'. "
            f"A newer prompt-serve may have written the file."
        )
    if set(tensors) != wanted:
        raise PromptFileInvalid(
            f"Encoding {kind!r} wants the tensors {sorted(wanted)}, the file has {sorted(tensors)}."
        )
    if kind == "dense":
        return Dense(context=tensors["context"])
    base: Base = "none" if options.get("base", "template") == "none" else "template"
    return LowRank(p_a=tensors["p_a"], p_b=tensors["p_b"], base=base)


def _check(name: str, tensor: HalfArray, *, dims: tuple[int, ...]) -> None:
    if tensor.dtype != np.float16:
        raise PromptFileInvalid(f"Tensor {name!r} is {tensor.dtype}; wanted float16.")
    if tensor.ndim not in dims or 0 in tensor.shape:
        wanted = " or ".join(f"{d}-dimensional" for d in dims)
        raise PromptFileInvalid(f"Tensor {name!r} has shape {tensor.shape}; wanted {wanted}.")
    if not np.isfinite(tensor).all():
        count = int((~np.isfinite(tensor)).sum())
        raise PromptFileInvalid(
            f"Tensor {name!r} holds {count} values that are NaN or infinite. "
            f"The training diverged; train again with a smaller learning rate."
        )
