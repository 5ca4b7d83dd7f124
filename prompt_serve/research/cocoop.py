"""CoCoOp: a context that a small network shifts for each image (Zhou et al., CVPR 2022,
arXiv 2203.05557).

Section 3.2: ``v_m(x) = v_m + pi`` with ``pi = h(x)``, one shift for all M vectors; h is a network
of two layers, E -> E/16 -> D with a ReLU between them, on the image features x. On ViT-B/16 with 4
vectors 2,048 + 512 x 32 + 32 + 32 x 512 + 512 = 35,360 numbers.

Traps: every image has class features of its own, so the text tower runs B times a step and again
for every image that is classified; memory grows with the batch (the paper's is 1 image, which
``batch_size`` sets). Such a prompt can be evaluated, but is not served.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.prompts.encodings import Conditional
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.quantized_tensor import StoredTensor, dequantize
from prompt_serve.training.methods.base import (
    Contexts,
    Encodings,
    LearnerInputs,
    Method,
    PromptLearner,
    StepInfo,
)
from prompt_serve.training.methods.parameters import (
    CODEBOOK_SETTINGS,
    QuantizableParameter,
    WholeVectors,
    codebook_metrics,
    initial_text_vectors,
    update_codebooks,
)

REDUCTION = 16


class Cocoop(PromptLearner):
    """M x D numbers of the context, and those of the network."""

    def __init__(self, start: LearnerInputs) -> None:
        super().__init__()
        hidden = max(1, start.embed_dim // REDUCTION)
        self.context = WholeVectors(initial_text_vectors(start), start)
        self.w_1 = _leaf(start, hidden, start.embed_dim, inputs=start.embed_dim)
        self.b_1 = _leaf(start, hidden, inputs=start.embed_dim)
        self.w_2 = _leaf(start, start.width, hidden, inputs=hidden)
        self.b_2 = _leaf(start, start.width, inputs=hidden)

    def contexts(self) -> Contexts:
        return Contexts(text=PromptVectors(context=self.context()))

    def contexts_of_images(self, image_features: Tensor) -> Tensor:
        """(B, M, D); while nothing is learned, of the numbers as the file has them."""
        layers = (self.w_1, self.b_1, self.w_2, self.b_2)
        if self.training:
            context, w_1, b_1, w_2, b_2 = self.context(), *(layer() for layer in layers)
        else:
            stored = (self.context.leaf.stored(), *(layer.stored() for layer in layers))
            context, w_1, b_1, w_2, b_2 = (_tensor(s, image_features.device) for s in stored)
        hidden = F.relu(F.linear(image_features, w_1, b_1))
        shifts = F.linear(hidden, w_2, b_2)
        contexts: Tensor = context + shifts.unsqueeze(1)
        return contexts

    def encodings(self) -> Encodings:
        return Encodings(
            text=Conditional(
                context=self.context.leaf.stored(),
                w_1=self.w_1.stored(),
                b_1=self.b_1.stored(),
                w_2=self.w_2.stored(),
                b_2=self.b_2.stored(),
            )
        )

    def after_update(self, moment: StepInfo) -> None:
        update_codebooks(self, moment)

    def log_metrics(self) -> dict[str, int | float]:
        return codebook_metrics(self)


def _leaf(start: LearnerInputs, *shape: int, inputs: int) -> QuantizableParameter:
    """Uniform within 1 / sqrt(inputs), as torch starts linear layers."""
    drawn = torch.rand(*shape, generator=start.generator)
    return QuantizableParameter((2 * drawn - 1) / math.sqrt(inputs), start)


def _tensor(stored: StoredTensor, device: torch.device) -> Tensor:
    return torch.from_numpy(dequantize(stored).astype(np.float32)).to(device)


METHOD = Method(
    name="cocoop",
    summary="A context and a network that shifts it for each image (CoCoOp); not servable.",
    paper="CoCoOp, arXiv 2203.05557, section 3.2",
    learner=Cocoop,
    learning_rate=0.002,
    learning_rates=(0.002, 0.01, 0.05),
    settings=CODEBOOK_SETTINGS | {"init", "noise_std"},
)
