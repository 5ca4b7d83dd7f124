"""CoOp: learn the context vectors themselves (Zhou et al., IJCV 2022, arXiv 2109.01134).

Equation 2: the prompt of class i is ``[V]_1 ... [V]_M [CLASS_i]``; equation 4 puts the class name
in the middle; section 3.2 has class-specific contexts, where every class learns V of its own.

Traps: the number of vectors is that of the template's tokens where they are the start ("a photo
of a": 4); random vectors are drawn with a standard deviation of 0.02; the context replaces token
embeddings *before* positions are added.
"""

import torch
from torch import Tensor, nn

from prompt_serve.encodings import Dense
from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.methods.base import Method, PromptLearner, Start, half


class Coop(PromptLearner):
    """M x D numbers: 2,048 on ViT-B/16 with 4 vectors; times C where class-specific."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        vectors = _initial(start)
        if start.config.class_specific:
            vectors = _for_each_class(vectors, start)
        self.vectors = nn.Parameter(vectors)

    def context(self) -> Tensor:
        return self.vectors

    def encoding(self) -> Dense:
        return Dense(context=half(self.vectors))


def _initial(start: Start) -> Tensor:
    if start.config.init == "random":
        return start.normal(start.n_ctx, start.width)
    if start.n_ctx != start.words.shape[0]:
        raise ConfigInvalid(
            f"n_ctx is {start.n_ctx}, but the template {start.config.template!r} has "
            f"{start.words.shape[0]} tokens before the class name. "
            f"Leave n_ctx out, or start from random numbers (init = 'random')."
        )
    return start.words.clone()


def _for_each_class(vectors: Tensor, start: Start) -> Tensor:
    if start.config.init == "random":
        others = [start.normal(*vectors.shape) for _ in range(start.n_classes - 1)]
        return torch.stack([vectors, *others])
    return vectors.expand(start.n_classes, -1, -1).clone()


METHOD = Method(
    name="coop",
    summary="The context vectors themselves (CoOp).",
    learner=Coop,
    learning_rate=0.002,  # the paper's
    learning_rates=(0.002, 0.01, 0.05),
)
