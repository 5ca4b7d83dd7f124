"""CoOp: learn the context vectors themselves (Zhou et al., IJCV 2022, arXiv 2109.01134).

Equation 2: the prompt of class i is ``[V]_1 ... [V]_M [CLASS_i]``; equation 4 puts the class name
in the middle; section 3.2 has class-specific contexts, where every class learns V of its own. With
a depth J, blocks 2 to J of the text tower get M vectors of their own in the same places ("deep
language prompting", MaPLe, section 3.2.1).

Traps: the number of vectors is that of the template's tokens where they are the start ("a photo
of a": 4); random vectors are drawn with a standard deviation of 0.02; the context replaces token
embeddings *before* positions are added.
"""

import torch
from torch import Tensor

from prompt_serve.training.methods.base import LearnerInputs, Method
from prompt_serve.training.methods.branches import TextVectors, check_placing
from prompt_serve.training.methods.parameters import (
    CODEBOOK_SETTINGS,
    WholeVectors,
    initial_text_vectors,
    whole_text_vectors,
)

SETTINGS = CODEBOOK_SETTINGS | {
    "init",
    "class_position",
    "class_specific",
    "depth",
    "noise_std",
}


class Coop(TextVectors):
    """J x M x D numbers: 2,048 on ViT-B/16 with 4 vectors; times C where class-specific."""

    def __init__(self, start: LearnerInputs) -> None:
        check_placing(start)
        depth = start.depth(start.text_layers)
        if start.config.class_specific:
            first = _for_each_class(initial_text_vectors(start), start)
            super().__init__([WholeVectors(first, start)])
        else:
            super().__init__(whole_text_vectors(start, depth))


def _for_each_class(vectors: Tensor, start: LearnerInputs) -> Tensor:
    if start.config.init == "random":
        others = [start.normal(*vectors.shape) for _ in range(start.n_classes - 1)]
        return torch.stack([vectors, *others])
    return vectors.expand(start.n_classes, -1, -1).clone()


METHOD = Method(
    name="coop",
    summary="The context vectors themselves (CoOp).",
    paper="CoOp, arXiv 2109.01134, eq. 2",
    learner=Coop,
    learning_rate=0.002,  # the paper's
    learning_rates=(0.002, 0.01, 0.05),
    settings=SETTINGS,
)
