"""VPT: learn vectors of the image tower (Jia et al., ECCV 2022, arXiv 2203.12119).

Equation 7 (VPT-deep): the input of each of the first J blocks holds M vectors of its own beside the
class token and the patches; what a block makes of them is discarded. With depth 1 (VPT-shallow,
equations 4 and 5) only the first block gets vectors, and they are carried along. The text branch is
the template: 73,728 numbers on ViT-B/16 with 8 vectors in all 12 blocks.

As in the comparisons with CLIP (MaPLe, table 1), the vectors get no position and go through the
layer norm in front of the first block, where CLIP has one.
"""

from dataclasses import dataclass

from prompt_serve.training.methods.base import LearnerInputs, Method
from prompt_serve.training.methods.coop import WholeVectors, WholeVectorSettings
from prompt_serve.training.methods.parameters import ImageVectors, Vectors, prompted_blocks
from prompt_serve.training.settings import whole


@dataclass(frozen=True, kw_only=True)
class VptSettings(WholeVectorSettings):
    """Settings of VPT."""

    depth: int | None = whole(
        None, 1, 1_000, "Number J of image-tower blocks with vectors of their own.",
        unset="all blocks",
    )  # fmt: skip


class Vpt(ImageVectors):
    """J M D numbers of the image branch."""

    def __init__(self, inputs: LearnerInputs, settings: VptSettings) -> None:
        inputs.prompted_image_width()
        layers = inputs.image_layers
        depth = prompted_blocks(settings.depth, layers, default=layers)
        super().__init__(image_vectors(inputs, settings, depth))


def image_vectors(
    inputs: LearnerInputs, settings: WholeVectorSettings, depth: int
) -> list[Vectors]:
    """Make the vectors of ``depth`` image-tower blocks, at random."""
    shape = (inputs.n_ctx, inputs.prompted_image_width())
    return [WholeVectors(inputs.normal(*shape), inputs, settings) for _ in range(depth)]


METHOD = Method(
    name="vpt",
    summary="Vectors of the image tower, in every block (VPT).",
    paper="VPT, arXiv 2203.12119, eq. 7",
    settings=VptSettings,
    learner=Vpt,
    learning_rate=0.1,  # best of these on validation images (emoji, embedded-vit)
    learning_rates=(0.02, 0.1, 0.5),
    n_ctx=8,
    prompts_images=lambda settings: True,
)
