"""DIP: learn a low-rank change of the template (Dense Information Prompt, arXiv 2312.10813).

Algorithm 3 (low-rank prompt): ``P = P_init + Dropout(P_A P_B, p)`` with P_A (M, R) and P_B (R, D);
at evaluation ``P = P_init + P_A P_B``. P_init is the frozen token embedding of the template's words
and is not stored; the learned numbers are R (M + D): 516 on ViT-B/16 with 4 vectors and rank 1.

Traps:

* Dropout acts on the M x D *product*, element by element, not on the factors; each step has one
  mask for all classes; kept elements are scaled by 1 / (1 - p).
* Both factors start from N(0, init_std^2) and neither may be zero: the gradient of each is a
  multiple of the other. The step that P really takes is the learning rate times the squared norm
  of the factors, so CoOp's 0.002 is far too small here: up to 0.02 the factors never leave the
  saddle at zero within 50 epochs (flowers, embedded backbone). The paper does not state its own.
* Weight decay pulls the product to zero, that is the context to the template.
* With relative learning rates (``step_sizes``) the factors are balanced: P_A starts with
  orthogonal columns, P_B with the spread of the change, and each has the rate at which its steps
  move the product as far as CoOp's would move the vectors.

With a depth J every prompted block has factors of its own, 516 J numbers (appendix F); only the
first adds to the template's words. In the image branch (``branch = "image"``) there are no words,
so the product stands alone: 772 numbers on ViT-B/16.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prompt_serve.errors import ConfigInvalid, counted
from prompt_serve.prompts.encodings import Base, LowRank
from prompt_serve.training.methods.base import LearnerInputs, Method, PromptLearner
from prompt_serve.training.methods.parameters import (
    ImageVectors,
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

Branch = Literal["text", "image"]


@dataclass(frozen=True, kw_only=True)
class LowRankSettings(CodebookSettings):
    """Settings of vectors that are learned as a product of two factors."""

    rank: int = whole(1, 1, 1_000, "Rank R of the learned change.")
    dropout: float = number(
        0.0, 0.0, 0.99, "Dropout probability of each element of the learned change."
    )
    frozen_init: bool = switch(
        True, "Add the change to the template's words; otherwise the change stands alone."
    )

    def placement(self) -> Placement:
        return Placement(starts_from_words=self.frozen_init)


@dataclass(frozen=True, kw_only=True)
class DipSettings(LowRankSettings):
    """Settings of DIP."""

    depth: int | None = whole(
        None, 1, 1_000, "Number J of blocks with factors of their own.", unset="1, the input alone"
    )
    branch: Branch = choice("text", get_args(Branch), "Tower that is prompted.")
    class_position: ClassPosition = choice(
        "end", get_args(ClassPosition), "Position of the class name among the vectors."
    )

    def placement(self) -> Placement:
        return Placement(class_position=self.class_position, starts_from_words=self.frozen_init)


class LowRankVectors(Vectors):
    """``P = P_init + Dropout(P_A P_B, p)`` (Alg. 3): R (M + D) numbers.

    Args:
        p_init: (M, D), frozen; None: the product stands alone.
        width: D.
        inputs: M, the spread of random values, the random numbers.
        settings: rank, dropout, codebooks of the factors.
    """

    p_init: Tensor

    def __init__(
        self, p_init: Tensor | None, width: int, inputs: LearnerInputs, settings: LowRankSettings
    ) -> None:
        super().__init__()
        m, r = inputs.n_ctx, settings.rank
        p_a, p_b = (_balanced_factors if inputs.balanced else _factors)(
            p_init, (m, r, width), inputs
        )
        self.p_a = QuantizableParameter(p_a, settings)
        self.p_b = QuantizableParameter(p_b, settings)
        frozen = torch.zeros(m, width) if p_init is None else p_init.clone()
        self.register_buffer("p_init", frozen, persistent=False)
        self._base: Base = "none" if p_init is None else "template"
        self._p = settings.dropout
        start = p_a @ p_b if p_init is None else p_init
        self._length = max(float(start.norm()), 1e-12)
        self._generator = inputs.generator

    def forward(self) -> Tensor:
        return self.p_init + self.dropout(self.p_a() @ self.p_b())  # (M, D)

    def dropout(self, product: Tensor) -> Tensor:
        """Set elements of the product (M, D) to zero with probability p, in training only."""
        if not self.training or self._p == 0.0:
            return product
        kept = torch.rand(product.shape, generator=self._generator) >= self._p
        return product * kept.to(product.device) / (1.0 - self._p)

    def layer(self) -> LowRank:
        return LowRank(p_a=self.p_a.stored(), p_b=self.p_b.stored(), base=self._base)

    def step_scales(self, scale: float, inputs: tuple[Tensor, ...]) -> StepScales:
        # A step of P_B moves P by P_A P_A^T G, on average as far as G itself, by the choice of P_A.
        # One of P_A moves it by G P_B^T P_B, as far once the change is as long as P_init.
        return [(self.p_b.values, scale), (self.p_a.values, scale / self._length**2)]


def _factors(
    p_init: Tensor | None, shape: tuple[int, int, int], inputs: LearnerInputs
) -> tuple[Tensor, Tensor]:
    """Return P_A (M, R) and P_B (R, D), both with the same spread."""
    m, r, width = shape
    # A product that stands alone starts with the spread of vectors that are learned whole;
    # were it nearly zero, the tower's layer norm would amplify what is nearly nothing.
    std = inputs.init_std if p_init is not None else (inputs.init_std / r) ** 0.5
    return inputs.normal(m, r, std=std), inputs.normal(r, width, std=std)


def _balanced_factors(
    p_init: Tensor | None, shape: tuple[int, int, int], inputs: LearnerInputs
) -> tuple[Tensor, Tensor]:
    """Return P_A (M, R) with orthogonal columns, and P_B (R, D) with the spread of the change.

    The change starts with ``init_std`` times the spread of P_init, or stands alone with the spread
    ``init_std``.
    """
    m, r, width = shape
    scale = (m / r) ** 0.25
    p_a = scale * torch.linalg.qr(inputs.normal(m, r, std=1.0)).Q  # (M, R)
    spread = 1.0 if p_init is None else float(p_init.square().mean().sqrt())
    return p_a, inputs.normal(r, width, std=scale * spread * inputs.init_std)


class Dip(TextVectors):
    """J R (M + D) numbers of the text branch."""

    def __init__(self, inputs: LearnerInputs, settings: DipSettings) -> None:
        check_low_rank(inputs, settings, inputs.width)
        check_placement(settings.placement(), settings.depth)
        depth = prompted_blocks(settings.depth, inputs.text_layers)
        super().__init__(low_rank_text_vectors(inputs, settings, depth))


class ImageDip(ImageVectors):
    """J R (M + D) numbers of the image branch."""

    def __init__(self, inputs: LearnerInputs, settings: DipSettings) -> None:
        width = inputs.prompted_image_width()
        check_low_rank(inputs, settings, width)
        depth = prompted_blocks(settings.depth, inputs.image_layers)
        super().__init__([LowRankVectors(None, width, inputs, settings) for _ in range(depth)])


def make_learner(inputs: LearnerInputs, settings: DipSettings) -> PromptLearner:
    """Make the learner of the setting ``branch``."""
    return ImageDip(inputs, settings) if settings.branch == "image" else Dip(inputs, settings)


def low_rank_text_vectors(
    inputs: LearnerInputs, settings: LowRankSettings, depth: int
) -> list[Vectors]:
    """Make the vectors of ``depth`` text-tower blocks; only those of the first add to the words."""
    words = inputs.first_words() if settings.frozen_init else None
    return [
        LowRankVectors(words if j == 0 else None, inputs.width, inputs, settings)
        for j in range(depth)
    ]


def check_low_rank(inputs: LearnerInputs, settings: LowRankSettings, width: int) -> None:
    """Raise ConfigInvalid unless factors of this rank can be learned."""
    faults = []
    if inputs.init_std == 0.0:
        faults.append("init_std is 0: both factors would stay zero for ever")
    if settings.rank > min(inputs.n_ctx, width):
        faults.append(
            f"rank is {settings.rank}; it may not exceed the "
            f"{counted(inputs.n_ctx, 'context vector')}"
        )
    if faults:
        raise ConfigInvalid("DIP cannot be learned with these settings:", faults)


METHOD = Method(
    name="dip",
    summary="A low-rank change of the template's words (DIP).",
    paper="DIP, arXiv 2312.10813, Alg. 3",
    settings=DipSettings,
    learner=make_learner,
    learning_rate=0.2,
    learning_rates=(0.1, 0.2, 0.5),
    prompts_images=lambda settings: settings.branch == "image",
)
