"""Codebooks for learned numbers (Quantized Prompt, ECCV 2024, sections 4.2 and 4.3)."""

import torch
from torch import Tensor, nn

from prompt_serve.coding import Coded
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.methods.base import Moment
from prompt_serve.types import HalfArray


class AdaptiveCodebook(nn.Module):
    """A codebook that a trainable tensor is seen through while it is learned."""

    def __init__(self, initial: Tensor, config: TrainConfig) -> None:
        super().__init__()
        self.reclusterings = nn.Buffer(torch.zeros((), dtype=torch.int64))
        raise NotImplementedError

    def forward(self, values: Tensor) -> Tensor:
        """The de-normalised codes of ``values``, with the gradient passed straight through."""
        raise NotImplementedError

    def coded(self, values: Tensor) -> Coded:
        """What the prompt file stores of ``values``."""
        raise NotImplementedError

    def after_update(self, values: Tensor, moment: Moment) -> None:
        """Make the codebook anew where the numbers have moved away from it."""
        raise NotImplementedError


def quantised(values: HalfArray, bits: int) -> Coded:
    """Numbers that were learned without a codebook, in one (PTQ)."""
    raise NotImplementedError
