"""What a method of prompt learning is, and what the training loop asks of it.

How a context is learned (a ``PromptLearner``), how it is stored (``prompt_serve.encodings``) and
how it is folded for use (``prompt_serve.folding``) are three things. A learner knows the first and
hands over the second; nothing but ``fold`` does the third.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prompt_serve.encodings import Encoding
from prompt_serve.training.config import TrainConfig
from prompt_serve.types import HalfArray


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a learner starts from."""

    config: TrainConfig
    words: Tensor  # (M', D) float32, token embeddings of the template's words before the class name
    n_classes: int  # C
    generator: torch.Generator  # on the CPU; the only source of the learner's random numbers

    @property
    def n_ctx(self) -> int:
        """M."""
        return self.config.n_ctx or self.words.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.words.shape[1]

    def normal(self, *shape: int) -> Tensor:
        """N(0, init_std^2) numbers."""
        return torch.randn(*shape, generator=self.generator) * self.config.init_std


class PromptLearner(nn.Module, ABC):
    """Trainable numbers, always float32, that make a context."""

    @abstractmethod
    def context(self) -> Tensor:
        """The context of this step: (M, D), or (C, M, D) where every class has its own.

        In training mode it may be random (dropout); in evaluation mode it is what ``encoding``
        folds to, up to rounding.
        """

    @abstractmethod
    def encoding(self) -> Encoding:
        """What the prompt file stores, rounded to float16."""

    def extra_loss(self, class_features: Tensor) -> Tensor | None:
        """Added to the cross-entropy of a step; None adds nothing.

        Args:
            class_features: (C, E) of this step, with gradients.
        """
        return None

    def after_step(self, step: int) -> None:
        """Called after each update of the numbers, with the steps done so far."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method as the registry lists it."""

    name: str
    summary: str  # one line for users
    # None: nothing is learned, the templates are used as they are.
    learner: Callable[[Start], PromptLearner] | None
    learning_rate: float = 0.0  # where the user gives none
    learning_rates: tuple[float, ...] = ()  # tried by ``--learning-rate auto``


def half(parameter: Tensor) -> HalfArray:
    """A parameter as the prompt file stores it. Too large a number becomes infinite, which the
    encoding refuses."""
    rounded: HalfArray = parameter.detach().cpu().to(torch.float16).numpy()
    return rounded
