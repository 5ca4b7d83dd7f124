"""MaPLe: vectors of the text tower, and their projections in the image tower (Khattak et al., CVPR
2023, arXiv 2210.03117); host of DIP+MaPLe and QMaPLe.

Section 3.2: block j of the text tower has M vectors P_j (D) of its own, J blocks in all, and the
same block of the image tower has ``F_j(P_j)`` with a linear projection F_j to its width D'. On
ViT-B/16 with 2 vectors in 9 blocks: 9 (2 x 512 + 512 x 768 + 768) = 3,555,072 numbers, 3,548,160
without the biases, which the tables of DIP and of Quantized Prompt leave out.

Traps:

* With 2 vectors, "a photo of a {}." keeps its "of a" behind them.
* Image vectors stand behind the patches, without a position, in front of ``ln_pre``.
* The paper's learning rate (0.0035, at 4 images a step) belongs to ViT-B/16; the small ViT wants
  more.

DIP+MaPLe (DIP, table 2): text vectors of low rank, of which those of the first block add to the
template's words, and projections ``W_A W_B`` of rank 64 without a bias: 741,924 numbers with 4
vectors. QMaPLe (Quantized Prompt, table 1): every P_j and every projection is seen through a
codebook of its own, at 4 bits in the paper; biases are not. 1,774,080 bytes of indices.

Once learned, the projections have done their work: the file keeps the image vectors that they made
(27.6 KB beside 18 KB of text vectors), as what is folded of them to float16 or to the bits asked
for. With ``store_projections`` it keeps the projections instead, which is how the papers count.
"""

from dataclasses import replace

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
from prompt_serve.training.methods.branches import (
    TextVectors,
    check_placing,
    encoding_of,
)
from prompt_serve.training.methods.dip import check_low_rank
from prompt_serve.training.methods.parameters import (
    CODEBOOK_SETTINGS,
    QuantizableParameter,
    Vectors,
    low_rank_text_vectors,
    whole_text_vectors,
)
from prompt_serve.training.quantization.codebook import quantized, saves_bytes
from prompt_serve.types import FloatArray

DEPTH = 9  # the paper's; less in a tower that has fewer blocks
LEARNING_RATE = 0.02  # most accurate on validation images (emoji, embedded-vit)
SETTINGS = CODEBOOK_SETTINGS | {"depth", "projection_rank", "store_projections"}


class LearnedProjection(nn.Module):
    """From text vectors (M, D) to image vectors (M, D'): ``x W + b``, or ``x W_A W_B``.

    All start as in ``nn.Linear``: uniform within one over the root of the inputs.
    """

    def __init__(self, start: LearnerInputs) -> None:
        super().__init__()
        text, image = start.width, start.prompted_image_width()
        rank = start.config.projection_rank
        shapes = [(text, image)] if rank is None else [(text, rank), (rank, image)]
        self.factors = nn.ModuleList(
            QuantizableParameter(_uniform(start, shape, inputs=shape[0]), start) for shape in shapes
        )
        bias = nn.Parameter(_uniform(start, (image,), inputs=text)) if rank is None else None
        self.bias = bias

    def forward(self, vectors: Tensor) -> Tensor:
        for factor in self.factors:
            vectors = vectors @ factor()
        return vectors if self.bias is None else vectors + self.bias

    def stored(self) -> Projection:
        """What the prompt file stores; the bias is never quantized."""
        factors = tuple(factor.stored() for factor in self.factors)  # type: ignore[operator]  # each a QuantizableParameter
        return Projection(
            factors=factors, bias=None if self.bias is None else to_float16(self.bias)
        )


class Coupled(TextVectors):
    """Text vectors of J blocks with a projection of each."""

    def __init__(self, start: LearnerInputs, blocks: list[Vectors]) -> None:
        super().__init__(blocks)
        self.projections = nn.ModuleList(LearnedProjection(start) for _ in blocks)
        self._config = start.config
        self._words = start.words.numpy()

    def contexts(self) -> Contexts:
        # Once for both branches: dropout and noise differ from one call to the next.
        vectors = [block() for block in self.blocks]
        projected = [
            project(source) for project, source in zip(self.projections, vectors, strict=True)
        ]
        return Contexts(text=_by_block(vectors), image=_by_block(projected))

    def encodings(self) -> Encodings:
        text = encoding_of(self.blocks)
        projected = Projected(layers=tuple(project.stored() for project in self.projections))  # type: ignore[operator]  # they are LearnedProjections
        if self._config.store_projections:
            return Encodings(text=text, image=projected)
        image = fold_image(projected, fold_text(text, self._words))
        return Encodings(text=text, image=stored_vectors(image, self._config.bits))


def maple(start: LearnerInputs) -> Coupled:
    """J (M D + D D' + D') numbers."""
    return Coupled(start, whole_text_vectors(start, _depth(start)))


def dip_maple(start: LearnerInputs) -> Coupled:
    """J (R (M + D) + R' (D + D')) numbers."""
    check_low_rank(start, start.width)
    return Coupled(start, low_rank_text_vectors(start, _depth(start)))


def stored_vectors(image: PromptVectors[FloatArray], bits: int | None) -> Dense | Deep:
    """Image vectors as a prompt file stores them, each block in a codebook of ``bits``, if any."""
    if image.context is None:
        raise TypeError("There are no image vectors to store.")
    layers = []
    for vectors in (image.context, *image.deeper):
        halves = to_float16(torch.from_numpy(vectors))
        if bits is not None and saves_bytes(halves.size, bits):
            layers.append(Dense(context=quantized(halves, bits)))
        else:
            layers.append(Dense(context=halves))
    return layers[0] if len(layers) == 1 else Deep(layers=tuple(layers))


def _by_block(vectors: list[Tensor]) -> PromptVectors[Tensor]:
    return PromptVectors(context=vectors[0], deeper=tuple(vectors[1:]))


def _depth(start: LearnerInputs) -> int:
    check_placing(start)
    start.prompted_image_width()
    return start.depth(min(start.text_layers, start.image_layers), DEPTH)


def _uniform(start: LearnerInputs, shape: tuple[int, ...], *, inputs: int) -> Tensor:
    bound = float(inputs) ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=start.generator)


METHOD = Method(
    name="maple",
    summary="Vectors of the text tower, projected into the image tower (MaPLe).",
    paper="MaPLe, arXiv 2210.03117, section 3.2",
    learner=maple,
    learning_rate=LEARNING_RATE,
    learning_rates=(0.0035, 0.02, 0.1),
    settings=SETTINGS | {"init", "noise_std"},
    defaults={"n_ctx": 2},
    prompts_images=lambda config: True,
)

DIP_MAPLE = replace(
    METHOD,
    name="dip-maple",
    summary="MaPLe with vectors and projections of low rank (DIP+MaPLe).",
    paper="DIP, arXiv 2312.10813, table 2",
    learner=dip_maple,
    settings=SETTINGS | {"rank", "dropout", "frozen_init"},
    defaults={"projection_rank": 64},
)

QMAPLE = replace(
    METHOD,
    name="qmaple",
    summary="MaPLe seen through codebooks (QMaPLe).",
    paper="Quantized Prompt, ECCV 2024, table 1",
    defaults={**METHOD.defaults, "bits": 4},
)
