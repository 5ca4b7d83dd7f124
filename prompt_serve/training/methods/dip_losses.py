"""DIP's first two algorithms: CoOp with a loss that asks for dense information (Dense Information
Prompt, arXiv 2312.10813, section 4.1). Its third, low rank, is ``dip``.

With the singular values s_1 >= ... >= s_n of the vectors (M, D), n = min(M, D):

    Alg. 1   CE - id_weight * (s_1 + ... + s_k) / (s_1 + ... + s_n)          k = id_k
    Alg. 2   CE + tail_weight * sum over the last k of i * |s_i|             k = tail_k, i <= n

A deep prompt or a class-specific context counts with the mean over its blocks or classes, without
the noise.

The paper does not state the weights. They and the learning rate were chosen by validation accuracy
on the emoji sample (embedded backbone, 10 epochs, one seed, rate 0.01): id_weight 1 and 5 gave 0.50
and 0.46, tail_weight 0.01 and 0.1 gave 0.52 and 0.48, neither gave 0.50. That is a first guess, not
a search: try others on validation images of your own.

Trap: "a photo of a" has one word twice, so the smallest singular value starts at zero, where it has
no derivative. Singular values that are zero but for rounding get no gradient, as if by sign(0) = 0
of Alg. 2's |s|; the others have one even where they are equal, since only their sums and not their
order count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prompt_serve.training.methods.base import LearnerInputs, Method, StepOutput
from prompt_serve.training.methods.coop import Coop, CoopSettings
from prompt_serve.training.settings import number, whole


@dataclass(frozen=True, kw_only=True)
class Alg1Settings(CoopSettings):
    """Settings of algorithm 1."""

    id_weight: float = number(1.0, 0.0, 1e4, "Weight of the reward for dense information.")
    id_k: int = whole(1, 1, 1_000, "Number of largest singular values that the reward counts.")


@dataclass(frozen=True, kw_only=True)
class Alg2Settings(CoopSettings):
    """Settings of algorithm 2."""

    tail_weight: float = number(0.01, 0.0, 1e4, "Weight of the penalty on small singular values.")
    tail_k: int | None = whole(
        None, 1, 1_000, "Number of smallest singular values that the penalty counts.",
        unset="all but the largest",
    )  # fmt: skip


class Alg1(Coop):
    """Reward the share of the largest singular values, ID_k."""

    def __init__(self, inputs: LearnerInputs, settings: Alg1Settings) -> None:
        super().__init__(inputs, settings)
        self._weight, self._k = settings.id_weight, settings.id_k

    def loss(self, step: StepOutput) -> Tensor:
        shares = [density(vectors, self._k) for vectors in _learned(self.blocks)]
        return step.cross_entropy - self._weight * torch.stack(shares).mean()


class Alg2(Coop):
    """Penalize the smallest singular values, the smaller the more."""

    def __init__(self, inputs: LearnerInputs, settings: Alg2Settings) -> None:
        super().__init__(inputs, settings)
        self._weight, self._k = settings.tail_weight, settings.tail_k

    def loss(self, step: StepOutput) -> Tensor:
        tails = [tail(vectors, self._k) for vectors in _learned(self.blocks)]
        return step.cross_entropy + self._weight * torch.stack(tails).mean()


def density(vectors: Tensor, k: int) -> Tensor:
    """Return ID_k of vectors (M, D), or its mean over (C, M, D): a number from 0 to 1."""
    singular = _singular_values(vectors)
    return (singular[..., :k].sum(-1) / singular.sum(-1).clamp(min=1e-12)).mean()


def tail(vectors: Tensor, k: int | None = None) -> Tensor:
    """Return the sum of ``i * s_i`` over the last k singular values of vectors (M, D).

    Of vectors (C, M, D) it is the mean over C. With k = None all but the largest count.
    """
    singular = _singular_values(vectors)
    n = singular.shape[-1]
    numbers = torch.arange(1, n + 1, device=singular.device, dtype=singular.dtype)
    kept = numbers > n - (n - 1 if k is None else k)
    return (numbers * kept * singular).sum(-1).mean()


def _learned(blocks: nn.ModuleList) -> list[Tensor]:
    """Return the vectors of each block, without noise."""
    return [block.v() for block in blocks]  # type: ignore[operator]  # WholeVectors


def _singular_values(vectors: Tensor) -> Tensor:
    """(..., n), largest first; those that are zero but for rounding are zero, without gradient."""
    singular = torch.linalg.svdvals(vectors)
    rounding = singular[..., :1] * max(vectors.shape[-2:]) * torch.finfo(singular.dtype).eps
    return torch.where(singular > rounding, singular, torch.zeros_like(singular))


ALG1 = Method(
    name="dip-alg1",
    summary="CoOp with a reward for dense information (DIP, Alg. 1).",
    paper="DIP, arXiv 2312.10813, Alg. 1",
    settings=Alg1Settings,
    learner=Alg1,
    learning_rate=0.01,
    learning_rates=(0.002, 0.01, 0.05),
)

ALG2 = Method(
    name="dip-alg2",
    summary="CoOp with a penalty on small singular values (DIP, Alg. 2).",
    paper="DIP, arXiv 2312.10813, Alg. 2",
    settings=Alg2Settings,
    learner=Alg2,
    learning_rate=0.01,
    learning_rates=(0.002, 0.01, 0.05),
)
