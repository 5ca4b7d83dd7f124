"""What a method of prompt learning is, and what the training loop asks of it.

How contexts are learned (a ``PromptLearner``), how they are stored (``prompts.encodings``) and
how they are folded for use (``prompts.folding``) are three things. A learner knows the first
and hands over the second; nothing but ``folding`` does the third. While learning, a learner makes
contexts of its own (``contexts``): with dropout, noise or a straight-through codebook. Whatever is
measured, in validation as at the end, is folded from ``encodings``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_serve.errors import BackboneUnsupported, ConfigInvalid
from prompt_serve.prompts.encodings import ImageEncoding, TextEncoding
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.config import TrainConfig
from prompt_serve.types import HalfArray

NO_VECTORS: PromptVectors[Tensor] = PromptVectors()


@dataclass(frozen=True, kw_only=True)
class LearnerInputs:
    """What a learner starts from."""

    config: TrainConfig  # resolved
    words: Tensor  # (M', D) float32, token embeddings of the template's words before the class name
    n_classes: int  # C
    generator: torch.Generator  # on the CPU; the only source of the learner's random numbers
    text_layers: int = 1
    embed_dim: int = 1  # E
    image_width: int | None = None  # D of the image tower; None: it cannot be prompted
    image_layers: int = 0
    # Class features (C, E) of the class names in given templates by the frozen model.
    frozen_features: Callable[[Sequence[str]], Tensor] = field(
        default=lambda templates: torch.empty(0), repr=False
    )

    @property
    def n_ctx(self) -> int:
        """M."""
        return self.config.n_ctx or self.words.shape[0]

    @property
    def width(self) -> int:
        """D of the text tower."""
        return self.words.shape[1]

    def normal(self, *shape: int, std: float | None = None) -> Tensor:
        """N(0, std^2) numbers; None: the setting ``init_std``."""
        spread = self.config.init_std if std is None else std
        return torch.randn(*shape, generator=self.generator) * spread

    def depth(self, layers: int, default: int = 1) -> int:
        """J: blocks with vectors of their own, in a tower (or two) of ``layers`` blocks.

        Where the user gave none: ``default``, or as many as there are.

        Raises:
            ConfigInvalid: more blocks were asked for than there are.
        """
        wanted = self.config.depth or min(default, layers)
        if wanted <= layers:
            return wanted
        raise ConfigInvalid(
            f"depth is {wanted}, but the tower has {layers} blocks. Give {layers} or less."
        )

    def prompted_image_width(self) -> int:
        """D of the image tower.

        Raises:
            BackboneUnsupported: it has none that can be prompted.
        """
        if self.image_width is None:
            raise BackboneUnsupported(
                f"Method {self.config.method!r} prompts the image tower, which must be a vision "
                f"transformer (ViT), such as that of 'embedded-vit' or ViT-B-16; this backbone "
                f"has another one. Use such a backbone, or a text method: 'dip' or 'coop'."
            )
        return self.image_width


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """The contexts of one step, with gradients."""

    text: PromptVectors[Tensor] = NO_VECTORS
    image: PromptVectors[Tensor] = NO_VECTORS


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """What the prompt file stores."""

    text: TextEncoding | None = None
    image: ImageEncoding | None = None


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What a loss may look at."""

    logits: Tensor  # (B, C)
    labels: Tensor  # (B,)
    class_features: Tensor  # (C, E), with gradients; (B, C, E) of a conditional method
    image_features: Tensor  # (B, E)
    logit_scale: float

    @property
    def cross_entropy(self) -> Tensor:
        return F.cross_entropy(self.logits, self.labels)

    def divergence_from(self, frozen: Tensor) -> Tensor:
        """The terms (B, C) of ``KL(p_frozen || p)`` for frozen class features (C, E); their sum
        over C is the divergence of an image."""
        scores = self.logit_scale * self.image_features @ frozen.T
        return F.kl_div(
            F.log_softmax(self.logits, dim=-1),
            F.log_softmax(scores, dim=-1).detach(),
            reduction="none",
            log_target=True,
        )


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """Where a run stands."""

    step: int  # steps done before this one
    steps: int  # of the whole run
    epoch: int  # from 0
    epochs: int


class PromptLearner(nn.Module, ABC):
    """Trainable numbers, always float32, that make contexts.

    All state beside the parameters lives in buffers and in ``LearnerInputs.generator``, so that a
    run can be resumed exactly.
    """

    @abstractmethod
    def contexts(self) -> Contexts:
        """The contexts of this training step, with gradients; may be random."""

    @abstractmethod
    def encodings(self) -> Encodings:
        """What the prompt file stores of the numbers as they stand."""

    def contexts_of_images(self, image_features: Tensor) -> Tensor | None:
        """(B, M, D) contexts that depend on the images (B, E); None: all images share one."""
        return None

    def loss(self, step: StepOutput) -> Tensor:
        """What is minimized."""
        return step.cross_entropy

    def backward(self, step: StepOutput) -> Tensor:
        """Put the gradients of one step into ``grad``; returns the loss, detached."""
        loss = self.loss(step)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss.detach()

    def before_update(self, moment: StepInfo) -> None:
        """Called when the gradients are there and the numbers are still the old ones."""

    def after_update(self, moment: StepInfo) -> None:
        """Called after each update of the numbers."""

    def after_epoch(self, moment: StepInfo) -> None:
        """Called after the last update of each epoch, before it is validated."""

    def log_metrics(self) -> Mapping[str, Any]:
        """What else to log of an epoch, such as re-clusterings or tokens left; JSON types."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method as the registry lists it."""

    name: str
    summary: str  # one line for users
    # None: nothing is learned, the templates are used as they are.
    learner: Callable[[LearnerInputs], PromptLearner] | None
    paper: str = ""  # where it is from, with the equation
    learning_rate: float = 0.0  # where the user gives none
    learning_rates: tuple[float, ...] = ()  # tried by ``--learning-rate auto``
    # Settings beside the common ones that mean something to it, and its values for those that
    # the user left at None.
    settings: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # Whether the image tower has to run at every step, and cannot be cached.
    prompts_images: Callable[[TrainConfig], bool] = lambda config: False


def to_float16(tensor: Tensor) -> HalfArray:
    """Numbers as the prompt file stores them. Too large a number becomes infinite, which the
    encodings refuse."""
    rounded: HalfArray = tensor.detach().cpu().to(torch.float16).numpy()
    return rounded
