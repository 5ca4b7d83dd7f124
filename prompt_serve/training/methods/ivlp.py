"""IVLP: vectors of both towers that know nothing of each other ("independent V-L prompting", MaPLe,
arXiv 2210.03117, section 4.2 and table 1).

J M D numbers in the text tower, as deep CoOp has them, and J M D' in the image tower, as VPT has
them: 23,040 on ViT-B/16 with 2 vectors in 9 blocks.
"""

from torch import nn

from prompt_serve.training.methods.base import Contexts, Encodings, LearnerInputs, Method
from prompt_serve.training.methods.branches import (
    TextVectors,
    branch_of,
    check_placing,
    encoding_of,
)
from prompt_serve.training.methods.parameters import CODEBOOK_SETTINGS, whole_text_vectors
from prompt_serve.training.methods.vpt import image_vectors

DEPTH = 9  # MaPLe's; less in a tower that has fewer blocks


class Ivlp(TextVectors):
    """J M (D + D') numbers of both branches."""

    def __init__(self, start: LearnerInputs) -> None:
        check_placing(start)
        start.prompted_image_width()
        depth = start.depth(min(start.text_layers, start.image_layers), DEPTH)
        super().__init__(whole_text_vectors(start, depth))
        self.image_blocks = nn.ModuleList(image_vectors(start, depth))

    def contexts(self) -> Contexts:
        return Contexts(text=branch_of(self.blocks), image=branch_of(self.image_blocks))

    def encodings(self) -> Encodings:
        return Encodings(text=encoding_of(self.blocks), image=encoding_of(self.image_blocks))


METHOD = Method(
    name="ivlp",
    summary="Vectors of both towers, independent of each other (IVLP).",
    paper="MaPLe, arXiv 2210.03117, table 1",
    learner=Ivlp,
    learning_rate=0.02,  # of 0.02 and 0.1 the better on validation images (emoji, embedded-vit)
    learning_rates=(0.0035, 0.02, 0.1),
    settings=CODEBOOK_SETTINGS | {"depth", "init", "noise_std"},
    defaults={"n_ctx": 2},
    prompts_images=lambda config: True,
)
