"""VPT: learn vectors of the image tower (Jia et al., ECCV 2022, arXiv 2203.12119).

Equation 7 (VPT-deep): at the input of each of the first J blocks stand M vectors of its own beside
the class token and the patches; what a block makes of them is thrown away. With depth 1
(VPT-shallow, equations 4 and 5) there are vectors at the first block only, and they are carried
along. The text branch is the template: 73,728 numbers on ViT-B/16 with 8 vectors in all 12 blocks.

As in the comparisons with CLIP (MaPLe, table 1), the vectors get no position and go through the
layer norm in front of the first block, where CLIP has one.
"""

from prompt_serve.training.methods.base import LearnerInputs, Method
from prompt_serve.training.methods.branches import ImageVectors
from prompt_serve.training.methods.parameters import (
    CODEBOOK_SETTINGS,
    Vectors,
    WholeVectors,
)


class Vpt(ImageVectors):
    """J M D numbers of the image branch."""

    def __init__(self, start: LearnerInputs) -> None:
        start.prompted_image_width()
        super().__init__(image_vectors(start, start.depth(start.image_layers, start.image_layers)))


def image_vectors(start: LearnerInputs, depth: int) -> list[Vectors]:
    """Vectors of ``depth`` blocks of the image tower, at random."""
    shape = (start.n_ctx, start.prompted_image_width())
    return [WholeVectors(start.normal(*shape), start) for _ in range(depth)]


METHOD = Method(
    name="vpt",
    summary="Vectors of the image tower, in every block (VPT).",
    paper="VPT, arXiv 2203.12119, eq. 7",
    learner=Vpt,
    learning_rate=0.1,  # best of these on validation images (emoji, embedded-vit)
    learning_rates=(0.02, 0.1, 0.5),
    settings=CODEBOOK_SETTINGS | {"depth", "noise_std"},
    defaults={"n_ctx": 8},
    prompts_images=lambda config: True,
)
