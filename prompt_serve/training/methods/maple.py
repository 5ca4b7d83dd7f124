"""MaPLe: vectors of the text tower, and their projections in the image tower (Khattak et al., CVPR
2023, arXiv 2210.03117); host of DIP+MaPLe and QMaPLe.

Section 3.2: block j of the text tower has M vectors P_j (D) of its own, J blocks in all, and the
same block of the image tower has ``F_j(P_j)`` with a linear projection F_j to its width D'. On
ViT-B/16 with 2 vectors in 9 blocks: 9 (2 x 512 + 512 x 768 + 768) = 3,555,072 numbers, 3,548,160
without the biases, which the tables of DIP and of Quantized Prompt leave out.

Traps:

* With 2 vectors, "a photo of a {}." keeps its "of a" behind them.
* Image vectors stand behind the patches, without a position, in front of ``ln_pre``.
* The paper's learning rate (0.0035, at 4 images per step) belongs to ViT-B/16; the small ViT needs
  more.

DIP+MaPLe (DIP, table 2): text vectors of low rank, of which those of the first block add to the
template's words, and projections ``W_A W_B`` of rank 64 without a bias: 741,924 numbers with 4
vectors. QMaPLe (Quantized Prompt, table 1): every P_j and every projection is seen through a
codebook of its own, at 4 bits in the paper; biases are not. 1,774,080 bytes of indices.

Projections are needed for training only: the file keeps the image vectors that they made (27.6 KB
beside 18 KB of text vectors), folded from the stored values and rounded to float16 or to ``bits``.
With ``store_projections`` it keeps the projections instead, which is how the papers count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prompt_serve.prompts.encodings import Deep, Dense, Projected, Projection
from prompt_serve.prompts.folding import fold_image, fold_text
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.methods.base import (
    Contexts,
    Encodings,
    LearnerInputs,
    Method,
    to_float16,
)
from prompt_serve.training.methods.coop import WholeTextSettings, whole_text_vectors
from prompt_serve.training.methods.dip import (
    LowRankSettings,
    check_low_rank,
    low_rank_text_vectors,
)
from prompt_serve.training.methods.parameters import (
    QuantizableParameter,
    StepScales,
    TextVectors,
    VectorModule,
    Vectors,
    encoding_of,
    prompted_blocks,
)
from prompt_serve.training.quantization.codebook import CodebookSettings, quantized, saves_bytes
from prompt_serve.training.settings import switch, whole
from prompt_serve.types import FloatArray

DEPTH = 9  # the paper's


@dataclass(frozen=True, kw_only=True)
class ProjectionSettings(CodebookSettings):
    """Settings of image vectors that are projections of text vectors."""

    depth: int | None = whole(
        None, 1, 1_000, "Number J of blocks of each tower with vectors of their own.",
        unset="9, or all blocks of a smaller tower",
    )  # fmt: skip
    projection_rank: int | None = whole(
        None, 1, 10_000, "Rank of the text-to-image projections.",
        unset="full, with a bias",
    )  # fmt: skip
    store_projections: bool = switch(
        False, "Store the projections, as the papers count, instead of the vectors they make."
    )


@dataclass(frozen=True, kw_only=True)
class MapleSettings(ProjectionSettings, WholeTextSettings):
    """Settings of MaPLe."""


@dataclass(frozen=True, kw_only=True)
class DipMapleSettings(LowRankSettings, ProjectionSettings):
    """Settings of DIP+MaPLe."""

    projection_rank: int | None = 64


@dataclass(frozen=True, kw_only=True)
class QmapleSettings(MapleSettings):
    """Settings of QMaPLe: those of MaPLe with codebooks."""

    bits: int | None = 4


class LearnedProjection(VectorModule):
    """F_j from text vectors (M, D) to image vectors (M, D'): ``x W + b``, or ``x W_A W_B``.

    All start as in ``nn.Linear``: uniform within one over the root of the inputs.
    """

    def __init__(self, inputs: LearnerInputs, settings: ProjectionSettings) -> None:
        super().__init__()
        text, image = inputs.width, inputs.prompted_image_width()
        rank = settings.projection_rank
        shapes = [(text, image)] if rank is None else [(text, rank), (rank, image)]
        self.factors = nn.ModuleList(
            QuantizableParameter(_uniform(inputs, shape, fan_in=shape[0]), settings)
            for shape in shapes
        )
        bias = nn.Parameter(_uniform(inputs, (image,), fan_in=text)) if rank is None else None
        self.bias = bias

    def forward(self, vectors: Tensor) -> Tensor:
        for factor in self.factors:
            vectors = vectors @ factor()  # (M, D) -> (M, R') -> (M, D')
        return vectors if self.bias is None else vectors + self.bias

    def stored(self) -> Projection:
        """Return the projection as the prompt file stores it; the bias is never quantized."""
        factors = tuple(factor.stored() for factor in self.factors)  # type: ignore[operator]  # each a QuantizableParameter
        return Projection(
            factors=factors, bias=None if self.bias is None else to_float16(self.bias)
        )

    def step_scales(self, scale: float, inputs: tuple[Tensor, ...]) -> StepScales:
        # x W + b: a step of W moves a row x W by |x|^2 times the row's gradient, one of b by the
        # sum over the M rows; each goes half the way. In x W_A W_B, what W_A moves is stretched by
        # W_B, by the mean of the squares of its singular values.
        (vectors,) = inputs  # (M, D)
        rows, half = _squared_length(vectors), scale / 2
        first, *others = self.factors.parameters()
        if self.bias is not None:
            return [(first, half / rows), (self.bias, half / len(vectors))]
        (second,) = others
        stretch = float(second.detach().square().sum()) / len(second)
        hidden = _squared_length(vectors @ first.detach())  # (M, R')
        return [(first, half / (rows * stretch)), (second, half / hidden)]


class Coupled(TextVectors):
    """Text vectors P_j of J blocks, each with a projection F_j."""

    def __init__(
        self, inputs: LearnerInputs, settings: ProjectionSettings, blocks: list[Vectors]
    ) -> None:
        super().__init__(blocks)
        self.projections = nn.ModuleList(LearnedProjection(inputs, settings) for _ in blocks)
        self._settings = settings
        self._words = inputs.words.numpy()

    def contexts(self) -> Contexts:
        # Once for both branches: dropout and noise differ from one call to the next.
        vectors = [block() for block in self.blocks]  # J of (M, D)
        projected = [
            project(source) for project, source in zip(self.projections, vectors, strict=True)
        ]  # J of (M, D')
        return Contexts(text=_by_block(vectors), image=_by_block(projected))

    def encodings(self) -> Encodings:
        text = encoding_of(self.blocks)
        projected = Projected(layers=tuple(project.stored() for project in self.projections))  # type: ignore[operator]  # they are LearnedProjections
        if self._settings.store_projections:
            return Encodings(text=text, image=projected)
        image = fold_image(projected, fold_text(text, self._words))
        return Encodings(text=text, image=stored_vectors(image, self._settings.bits))


def make_maple(inputs: LearnerInputs, settings: MapleSettings) -> Coupled:
    """J (M D + D D' + D') numbers."""
    blocks = whole_text_vectors(inputs, settings, _depth(inputs, settings))
    return Coupled(inputs, settings, blocks)


def make_dip_maple(inputs: LearnerInputs, settings: DipMapleSettings) -> Coupled:
    """J (R (M + D) + R' (D + D')) numbers."""
    check_low_rank(inputs, settings, inputs.width)
    blocks = low_rank_text_vectors(inputs, settings, _depth(inputs, settings))
    return Coupled(inputs, settings, blocks)


def stored_vectors(image: PromptVectors[FloatArray], bits: int | None) -> Dense | Deep:
    """Return image vectors as a prompt file stores them, each block in a codebook if ``bits``."""
    if image.context is None:
        raise TypeError("There are no image vectors to store.")
    layers = []
    for vectors in (image.context, *image.deeper):
        rounded = to_float16(torch.from_numpy(vectors))
        if bits is not None and saves_bytes(rounded.size, bits):
            layers.append(Dense(context=quantized(rounded, bits)))
        else:
            layers.append(Dense(context=rounded))
    return layers[0] if len(layers) == 1 else Deep(layers=tuple(layers))


def _by_block(vectors: list[Tensor]) -> PromptVectors[Tensor]:
    return PromptVectors(context=vectors[0], deeper=tuple(vectors[1:]))


def _depth(inputs: LearnerInputs, settings: ProjectionSettings) -> int:
    inputs.prompted_image_width()
    layers = min(inputs.text_layers, inputs.image_layers)
    return prompted_blocks(settings.depth, layers, default=DEPTH)


def _squared_length(rows: Tensor) -> float:
    """Return the mean of the squared lengths of rows (M, D)."""
    return max(float(rows.square().sum(dim=-1).mean()), 1e-12)


def _uniform(inputs: LearnerInputs, shape: tuple[int, ...], *, fan_in: int) -> Tensor:
    bound = float(fan_in) ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=inputs.generator)


METHOD = Method(
    name="maple",
    summary="Vectors of the text tower, projected into the image tower (MaPLe).",
    paper="MaPLe, arXiv 2210.03117, section 3.2",
    settings=MapleSettings,
    learner=make_maple,
    learning_rate=0.02,  # most accurate on validation images (emoji, embedded-vit)
    learning_rates=(0.0035, 0.02, 0.1),
    n_ctx=2,
    prompts_images=lambda settings: True,
)

DIP_MAPLE = Method(
    name="dip-maple",
    summary="MaPLe with vectors and projections of low rank (DIP+MaPLe).",
    paper="DIP, arXiv 2312.10813, table 2",
    settings=DipMapleSettings,
    learner=make_dip_maple,
    learning_rate=METHOD.learning_rate,
    learning_rates=METHOD.learning_rates,
    prompts_images=lambda settings: True,
)

QMAPLE = Method(
    name="qmaple",
    summary="MaPLe seen through codebooks (QMaPLe).",
    paper="Quantized Prompt, ECCV 2024, table 1",
    settings=QmapleSettings,
    learner=make_maple,
    learning_rate=METHOD.learning_rate,
    learning_rates=METHOD.learning_rates,
    n_ctx=METHOD.n_ctx,
    prompts_images=lambda settings: True,
)
