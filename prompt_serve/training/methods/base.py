"""The interface between a method of prompt learning and the training loop.

Learning contexts (``PromptLearner``), storing them (``prompts.encodings``) and folding them for use
(``prompts.folding``) are three things. A learner does the first and hands over the second; only
``folding`` does the third. In training, a learner makes its contexts itself (``contexts``): with
dropout, noise or a straight-through codebook. Everything that is measured, in validation and at the
end, is folded from ``encodings``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_serve.closed_form.learn import LearnedClasses
from prompt_serve.errors import BackboneUnsupported, ConfigInvalid
from prompt_serve.prompts.encodings import ImageEncoding, TextEncoding
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.training.settings import MethodSettings
from prompt_serve.types import FloatArray, HalfArray, IntArray

NO_VECTORS: PromptVectors[Tensor] = PromptVectors()
Settings = TypeVar("Settings", bound=MethodSettings)


@dataclass(frozen=True, kw_only=True)
class LearnerInputs:
    """Everything a learner starts from beside the settings of its method."""

    method: str  # its name, for error messages
    words: Tensor  # (M', D) float32, token embeddings of the template's words before the class name
    n_classes: int  # C
    generator: torch.Generator  # on the CPU; the only source of the learner's random numbers
    template: str = DEFAULT_TEMPLATE
    given_n_ctx: int | None = None  # the setting ``n_ctx``
    init_std: float = 0.02
    balanced: bool = False  # factors start so that relative learning rates fit them
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
        return self.given_n_ctx or self.words.shape[0]

    @property
    def width(self) -> int:
        """D of the text tower."""
        return self.words.shape[1]

    def first_words(self) -> Tensor:
        """Return the template's first M words, (M, D).

        Raises:
            ConfigInvalid: the template has fewer words than there are vectors.
        """
        if self.n_ctx > self.words.shape[0]:
            raise ConfigInvalid(
                f"n_ctx is {self.n_ctx}, but the template {self.template!r} has "
                f"{self.words.shape[0]} tokens before the class name to start from. "
                f"Leave n_ctx out, or start without the words (init = 'random', or for low rank "
                f"frozen_init = false)."
            )
        return self.words[: self.n_ctx]

    def normal(self, *shape: int, std: float | None = None) -> Tensor:
        """Draw from N(0, std^2); None stands for the setting ``init_std``."""
        spread = self.init_std if std is None else std
        return torch.randn(*shape, generator=self.generator) * spread

    def prompted_image_width(self) -> int:
        """Return D of the image tower.

        Raises:
            BackboneUnsupported: the image tower cannot be prompted.
        """
        if self.image_width is None:
            raise BackboneUnsupported(
                f"Method {self.method!r} prompts the image tower, which must be a vision "
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
    """The learned values as the prompt file stores them."""

    text: TextEncoding | None = None
    image: ImageEncoding | None = None


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """The results of a forward pass that a loss can use."""

    logits: Tensor  # (B, C)
    labels: Tensor  # (B,)
    class_features: Tensor  # (C, E), with gradients; (B, C, E) of a conditional method
    image_features: Tensor  # (B, E)
    logit_scale: float

    @property
    def cross_entropy(self) -> Tensor:
        return F.cross_entropy(self.logits, self.labels)

    def divergence_from(self, frozen: Tensor) -> Tensor:
        """Return the terms (B, C) of ``KL(p_frozen || p)`` for frozen class features (C, E).

        Their sum over C is the divergence of an image.
        """
        frozen_logits = self.logit_scale * self.image_features @ frozen.T  # (B, C)
        return F.kl_div(
            F.log_softmax(self.logits, dim=-1),
            F.log_softmax(frozen_logits, dim=-1).detach(),
            reduction="none",
            log_target=True,
        )


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """Position of a step in its run."""

    step: int  # steps done before this one
    steps: int  # in the whole run
    epoch: int  # from 0
    epochs: int


class PromptLearner(nn.Module, ABC):
    """Trainable values, always float32, from which contexts are made.

    All state beside the parameters lives in buffers and in ``LearnerInputs.generator``, so that a
    run can be resumed bit-exactly.
    """

    @abstractmethod
    def contexts(self) -> Contexts:
        """Return the contexts of this training step, with gradients; they may be random."""

    @abstractmethod
    def encodings(self) -> Encodings:
        """Return the current values as the prompt file stores them."""

    def contexts_of_images(self, image_features: Tensor) -> Tensor | None:
        """Return contexts (B, M, D) that depend on the images (B, E).

        None, as here: all images share the contexts of the step.
        """
        return None

    def loss(self, step: StepOutput) -> Tensor:
        """Return the value to minimize."""
        return step.cross_entropy

    def backward(self, step: StepOutput) -> Tensor:
        """Put the gradients of one step into ``grad``; return the loss, detached."""
        loss = self.loss(step)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss.detach()

    def before_update(self, step_info: StepInfo) -> None:
        """Hook: the gradients are computed, the values not yet updated."""

    def after_update(self, step_info: StepInfo) -> None:
        """Hook: the values have been updated."""

    def after_epoch(self, step_info: StepInfo) -> None:
        """Hook: the last update of an epoch is done, validation comes next."""

    def log_metrics(self) -> Mapping[str, Any]:
        """Return further values to log for an epoch, such as tokens left; JSON types."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ClosedFormInputs:
    """Everything a method in closed form learns from beside its settings."""

    features: FloatArray  # (N, E), unit length, plain views
    labels: IntArray  # (N,)
    text_features: FloatArray  # (C, E) of the template, by the frozen model
    logit_scale: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Method(Generic[Settings]):
    """A method as the registry lists it."""

    name: str
    summary: str  # one line for users
    settings: type[Settings]
    # Learns a context by gradient steps. None, and no closed form: nothing is learned.
    learner: Callable[[LearnerInputs, Settings], PromptLearner] | None
    # Learns class vectors from image features at once, in place of a context.
    closed_form: Callable[[ClosedFormInputs, Settings], LearnedClasses] | None = None
    paper: str = ""  # source, with the equation
    learning_rate: float = 0.0  # where the user gives none
    learning_rates: tuple[float, ...] = ()  # tried by ``--learning-rate auto``
    # Defaults of ``prompt-serve train``, where they differ from the paper's.
    user_settings: Mapping[str, Any] = field(default_factory=dict)
    n_ctx: int | None = None  # vectors M where the user gives none; None: the template's tokens
    # True: the image tower runs at every step, and its features cannot be cached.
    prompts_images: Callable[[Settings], bool] = lambda settings: False


def to_float16(tensor: Tensor) -> HalfArray:
    """Round to float16, as the prompt file stores numbers.

    Too large a number becomes infinite, which the encodings refuse.
    """
    rounded: HalfArray = tensor.detach().cpu().to(torch.float16).numpy()
    return rounded
