"""CoOp: learn the context vectors themselves (Zhou et al., IJCV 2022, arXiv 2109.01134).

Equation 2: the prompt of class i is ``[V]_1 ... [V]_M [CLASS_i]``; equation 4 puts the class name
in the middle; section 3.2 has class-specific contexts, where every class learns V of its own. With
a depth J, blocks 2 to J of the text tower get M vectors of their own in the same places ("deep
language prompting", MaPLe, section 3.2.1).

Traps: where learning starts from the template, there are as many vectors as it has tokens ("a photo
of a": 4); random vectors are drawn with a standard deviation of 0.02; the context replaces token
embeddings *before* positions are added.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prompt_serve.prompts.encodings import Dense
from prompt_serve.training.methods.base import LearnerInputs, Method
from prompt_serve.training.methods.parameters import (
    QuantizableParameter,
    StepScales,
    TextVectors,
    Vectors,
    check_placement,
    prompted_blocks,
)
from prompt_serve.training.quantization.codebook import CodebookSettings
from prompt_serve.training.settings import Placement, choice, number, switch, whole
from prompt_serve.types import ClassPosition

Init = Literal["template", "random"]


@dataclass(frozen=True, kw_only=True)
class WholeVectorSettings(CodebookSettings):
    """Settings of vectors that are learned whole, in either tower."""

    noise_std: float = number(
        0.0, 0.0, 10.0,
        "Standard deviation of Gaussian noise added to the vectors at each training step.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WholeTextSettings(WholeVectorSettings):
    """Settings of vectors that are learned whole in the text tower."""

    init: Init = choice(
        "template", get_args(Init), "Start of the text vectors: the template's words, or random."
    )

    def placement(self) -> Placement:
        return Placement(starts_from_words=self.init == "template")


@dataclass(frozen=True, kw_only=True)
class CoopSettings(WholeTextSettings):
    """Settings of CoOp."""

    depth: int | None = whole(
        None, 1, 1_000, "Number J of text-tower blocks with vectors of their own.",
        unset="1, the input alone",
    )  # fmt: skip
    class_position: ClassPosition = choice(
        "end", get_args(ClassPosition), "Position of the class name among the vectors."
    )
    class_specific: bool = switch(False, "Learn a context for each class.")

    def placement(self) -> Placement:
        return Placement(
            class_position=self.class_position,
            class_specific=self.class_specific,
            starts_from_words=self.init == "template",
        )


class WholeVectors(Vectors):
    """The vectors themselves, with noise in training: ``V + N(0, noise_std^2)``."""

    def __init__(
        self, initial: Tensor, inputs: LearnerInputs, settings: WholeVectorSettings
    ) -> None:
        super().__init__()
        self.v = QuantizableParameter(initial, settings)
        self._noise_std = settings.noise_std
        self._generator = inputs.generator

    def forward(self) -> Tensor:
        vectors: Tensor = self.v()
        if not self.training or not self._noise_std:
            return vectors
        # Drawn on the CPU whatever the device, so that a seed means the same everywhere.
        noise = torch.randn(vectors.shape, generator=self._generator) * self._noise_std
        return vectors + noise.to(vectors.device)

    def layer(self) -> Dense:
        return Dense(context=self.v.stored())

    def step_scales(self, scale: float, inputs: tuple[Tensor, ...]) -> StepScales:
        return [(self.v.values, scale)]


class Coop(TextVectors):
    """J x M x D numbers: 2,048 on ViT-B/16 with 4 vectors; times C where class-specific."""

    def __init__(self, inputs: LearnerInputs, settings: CoopSettings) -> None:
        check_placement(settings.placement(), settings.depth)
        depth = prompted_blocks(settings.depth, inputs.text_layers)
        if settings.class_specific:
            super().__init__([WholeVectors(_per_class(inputs, settings), inputs, settings)])
        else:
            super().__init__(whole_text_vectors(inputs, settings, depth))


def whole_text_vectors(
    inputs: LearnerInputs, settings: WholeTextSettings, depth: int
) -> list[Vectors]:
    """Make the vectors of ``depth`` text-tower blocks; those of blocks 2 to J start at random."""
    first = initial_text_vectors(inputs, settings)
    others = [inputs.normal(inputs.n_ctx, inputs.width) for _ in range(depth - 1)]
    return [WholeVectors(initial, inputs, settings) for initial in (first, *others)]


def initial_text_vectors(inputs: LearnerInputs, settings: WholeTextSettings) -> Tensor:
    """Return (M, D): the template's first M words, or random numbers.

    Raises:
        ConfigInvalid: there are more vectors than the template has words.
    """
    if settings.init == "random":
        return inputs.normal(inputs.n_ctx, inputs.width)
    return inputs.first_words().clone()


def _per_class(inputs: LearnerInputs, settings: CoopSettings) -> Tensor:
    """Return (C, M, D)."""
    vectors = initial_text_vectors(inputs, settings)  # (M, D)
    if settings.init == "random":
        others = [inputs.normal(*vectors.shape) for _ in range(inputs.n_classes - 1)]
        return torch.stack([vectors, *others])
    return vectors.expand(inputs.n_classes, -1, -1).clone()


METHOD = Method(
    name="coop",
    summary="The context vectors themselves (CoOp).",
    paper="CoOp, arXiv 2109.01134, eq. 2",
    settings=CoopSettings,
    learner=Coop,
    learning_rate=0.002,  # the paper's
    learning_rates=(0.002, 0.01, 0.05),
)
