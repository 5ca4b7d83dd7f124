"""IVLP: independent vectors in both towers ("independent V-L prompting", MaPLe, arXiv 2210.03117,
section 4.2 and table 1).

J M D numbers in the text tower, as deep CoOp has them, and J M D' in the image tower, as VPT has
them: 23,040 on ViT-B/16 with 2 vectors in 9 blocks.
"""

from dataclasses import dataclass

from torch import nn

from prompt_serve.training.methods.base import Contexts, Encodings, LearnerInputs, Method
from prompt_serve.training.methods.coop import WholeTextSettings, whole_text_vectors
from prompt_serve.training.methods.parameters import (
    TextVectors,
    branch_of,
    encoding_of,
    prompted_blocks,
)
from prompt_serve.training.methods.vpt import image_vectors
from prompt_serve.training.settings import whole

DEPTH = 9  # MaPLe's


@dataclass(frozen=True, kw_only=True)
class IvlpSettings(WholeTextSettings):
    """Settings of IVLP."""

    depth: int | None = whole(
        None, 1, 1_000, "Number J of blocks of each tower with vectors of their own.",
        unset="9, or all blocks of a smaller tower",
    )  # fmt: skip


class Ivlp(TextVectors):
    """J M (D + D') numbers of both branches."""

    def __init__(self, inputs: LearnerInputs, settings: IvlpSettings) -> None:
        inputs.prompted_image_width()
        layers = min(inputs.text_layers, inputs.image_layers)
        depth = prompted_blocks(settings.depth, layers, default=DEPTH)
        super().__init__(whole_text_vectors(inputs, settings, depth))
        self.image_blocks = nn.ModuleList(image_vectors(inputs, settings, depth))

    def contexts(self) -> Contexts:
        return Contexts(text=branch_of(self.blocks), image=branch_of(self.image_blocks))

    def encodings(self) -> Encodings:
        return Encodings(text=encoding_of(self.blocks), image=encoding_of(self.image_blocks))


METHOD = Method(
    name="ivlp",
    summary="Vectors of both towers, independent of each other (IVLP).",
    paper="MaPLe, arXiv 2210.03117, table 1",
    settings=IvlpSettings,
    learner=Ivlp,
    learning_rate=0.02,  # of 0.02 and 0.1 the better on validation images (emoji, embedded-vit)
    learning_rates=(0.0035, 0.02, 0.1),
    n_ctx=2,
    prompts_images=lambda settings: True,
)
