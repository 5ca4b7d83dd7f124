"""The parts that learners are made of: one trainable tensor, and vectors that are learned whole or
as a product of two factors.

Any trainable tensor can be held in a codebook, so every method can be quantized: QCoOp is CoOp
with one, QMaPLe is MaPLe with one for each prompt and each projection.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.encodings import Base, Dense, Layer, LowRank
from prompt_serve.prompts.quantized_tensor import StoredTensor
from prompt_serve.training.methods.base import LearnerInputs, StepInfo, to_float16
from prompt_serve.training.quantization.codebook import AdaptiveCodebook, quantized, saves_bytes

CODEBOOK_SETTINGS = frozenset(
    {"bits", "quantization", "recluster_above", "recluster_interval", "recluster_on_error"}
)


class QuantizableParameter(nn.Module):
    """One trainable tensor, learned as it is or through a codebook.

    A tensor so small that its codebook would take more bytes than it saves stays as it is.
    """

    def __init__(self, initial: Tensor, start: LearnerInputs) -> None:
        super().__init__()
        config = start.config
        self.values = nn.Parameter(initial.clone())
        worthwhile = config.bits is not None and saves_bytes(initial.numel(), config.bits)
        self._bits = config.bits if worthwhile else None
        while_learning = worthwhile and config.quantization == "qat"
        self.codebook = AdaptiveCodebook(initial, config) if while_learning else None

    def forward(self) -> Tensor:
        """The tensor of this step, with gradients (straight through the codebook)."""
        if self.codebook is None:
            return self.values
        through: Tensor = self.codebook(self.values)
        return through

    def stored(self) -> StoredTensor:
        if self.codebook is not None:
            return self.codebook.coded(self.values)
        if self._bits is not None:
            return quantized(to_float16(self.values), self._bits)
        return to_float16(self.values)


class Vectors(nn.Module, ABC):
    """The learned vectors (M, D) of one block."""

    @abstractmethod
    def forward(self) -> Tensor:
        """(M, D), or (C, M, D), of this step."""

    @abstractmethod
    def layer(self) -> Layer:
        """What the prompt file stores."""


class WholeVectors(Vectors):
    """The numbers themselves."""

    def __init__(self, initial: Tensor, start: LearnerInputs) -> None:
        super().__init__()
        self.leaf = QuantizableParameter(initial, start)
        self._noise_std = start.config.noise_std
        self._generator = start.generator

    def forward(self) -> Tensor:
        vectors: Tensor = self.leaf()
        if not self.training or not self._noise_std:
            return vectors
        # Drawn on the CPU whatever the device, so that a seed means the same everywhere.
        noise = torch.randn(vectors.shape, generator=self._generator) * self._noise_std
        return vectors + noise.to(vectors.device)

    def layer(self) -> Dense:
        return Dense(context=self.leaf.stored())


class LowRankVectors(Vectors):
    """``P = P_init + Dropout(P_A P_B, p)`` (DIP, Alg. 3): R (M + D) numbers.

    Args:
        p_init: (M, D) frozen; None adds the product to nothing.
        shape: (M, D).
        start: rank, dropout and random numbers.
    """

    p_init: Tensor

    def __init__(self, p_init: Tensor | None, shape: tuple[int, int], start: LearnerInputs) -> None:
        super().__init__()
        rank = start.config.rank
        # A product that stands alone starts with the spread of vectors that are learned whole;
        # were it nearly zero, the tower's layer norm would make much of nothing.
        std = start.config.init_std if p_init is not None else (start.config.init_std / rank) ** 0.5
        self.a = QuantizableParameter(start.normal(shape[0], rank, std=std), start)
        self.b = QuantizableParameter(start.normal(rank, shape[1], std=std), start)
        self._base: Base = "none" if p_init is None else "template"
        initial = torch.zeros(shape) if p_init is None else p_init.clone()
        self.register_buffer("p_init", initial, persistent=False)
        self._dropout = start.config.dropout
        self._generator = start.generator

    def forward(self) -> Tensor:
        return self.p_init + self._drop(self.a() @ self.b())

    def layer(self) -> LowRank:
        return LowRank(p_a=self.a.stored(), p_b=self.b.stored(), base=self._base)

    def _drop(self, product: Tensor) -> Tensor:
        if not self.training or self._dropout == 0.0:
            return product
        kept = torch.rand(product.shape, generator=self._generator) >= self._dropout
        return product * kept.to(product.device) / (1.0 - self._dropout)


def whole_text_vectors(start: LearnerInputs, depth: int) -> list[Vectors]:
    """Vectors of ``depth`` blocks of the text tower: the first from words or at random (config
    ``init``), the others at random."""
    first = initial_text_vectors(start)
    others = [start.normal(start.n_ctx, start.width) for _ in range(depth - 1)]
    return [WholeVectors(initial, start) for initial in (first, *others)]


def initial_text_vectors(start: LearnerInputs) -> Tensor:
    """(M, D): the template's first M words, or random numbers.

    Raises:
        ConfigInvalid: more vectors than the template has words.
    """
    if start.config.init == "random":
        return start.normal(start.n_ctx, start.width)
    check_words(start)
    return start.words[: start.n_ctx].clone()


def low_rank_text_vectors(start: LearnerInputs, depth: int) -> list[Vectors]:
    """Low-rank vectors of ``depth`` blocks of the text tower; the first adds to the template."""
    if start.config.frozen_init:
        check_words(start)
    shape = (start.n_ctx, start.width)
    words = start.words[: start.n_ctx] if start.config.frozen_init else None
    return [LowRankVectors(words if j == 0 else None, shape, start) for j in range(depth)]


def check_words(start: LearnerInputs) -> None:
    """Raise ConfigInvalid where the template has fewer words than there are vectors."""
    if start.n_ctx > start.words.shape[0]:
        raise ConfigInvalid(
            f"n_ctx is {start.n_ctx}, but the template {start.config.template!r} has "
            f"{start.words.shape[0]} tokens before the class name to start from. "
            f"Leave n_ctx out, or start without the words (init = 'random', or for low rank "
            f"frozen_init = false)."
        )


def update_codebooks(module: nn.Module, moment: StepInfo) -> None:
    """Let every codebook in ``module`` look at the step that was done."""
    for part in module.modules():
        if isinstance(part, QuantizableParameter) and part.codebook is not None:
            part.codebook.after_update(part.values, moment)


def reclusterings(module: nn.Module) -> int:
    """How often the codebooks in ``module`` were made anew."""
    return sum(
        int(part.codebook.reclusterings)
        for part in module.modules()
        if isinstance(part, QuantizableParameter) and part.codebook is not None
    )


def codebook_metrics(module: nn.Module) -> dict[str, int | float]:
    """What to log of the codebooks in ``module``: how often they were made anew, and the largest
    KL divergence at the last look; nothing where there are none."""
    codebooks = [part for part in module.modules() if isinstance(part, AdaptiveCodebook)]
    if not codebooks:
        return {}
    return {
        "reclusterings": reclusterings(module),
        "code_divergence": round(max(float(codebook.divergence) for codebook in codebooks), 6),
    }
