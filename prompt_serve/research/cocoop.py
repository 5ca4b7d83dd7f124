"""CoCoOp: a context shifted by a small network for each image (Zhou et al., CVPR 2022,
arXiv 2203.05557).

Section 3.2: ``v_m(x) = v_m + pi`` with ``pi = h(x)``, one shift for all M vectors; h is a network
of two layers, E -> E/16 -> D with a ReLU between them, on the image features x. On ViT-B/16 with 4
vectors 2,048 + 512 x 32 + 32 + 32 x 512 + 512 = 35,360 numbers.

Traps: every image has class features of its own, so the text tower runs B times per step and again
for every image that is classified; memory grows with the batch (1 image in the paper; see
``batch_size``). Such a prompt can be evaluated, but is not served.
"""

import math
from dataclasses import dataclass

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
from prompt_serve.training.methods.coop import (
    WholeTextSettings,
    WholeVectors,
    initial_text_vectors,
)
from prompt_serve.training.methods.parameters import (
    QuantizableParameter,
    codebook_metrics,
    update_codebooks,
)

REDUCTION = 16


@dataclass(frozen=True, kw_only=True)
class CocoopSettings(WholeTextSettings):
    """Settings of CoCoOp."""


class Cocoop(PromptLearner):
    """M x D numbers of the context, and those of the network."""

    def __init__(self, inputs: LearnerInputs, settings: CocoopSettings) -> None:
        super().__init__()
        d, e = inputs.width, inputs.embed_dim
        hidden = max(1, e // REDUCTION)

        def uniform(*shape: int, fan_in: int) -> QuantizableParameter:
            """Draw within 1 / sqrt(fan_in), as torch initializes linear layers."""
            drawn = torch.rand(*shape, generator=inputs.generator)
            return QuantizableParameter((2 * drawn - 1) / math.sqrt(fan_in), settings)

        self.context = WholeVectors(initial_text_vectors(inputs, settings), inputs, settings)
        self.w_1 = uniform(hidden, e, fan_in=e)
        self.b_1 = uniform(hidden, fan_in=e)
        self.w_2 = uniform(d, hidden, fan_in=hidden)
        self.b_2 = uniform(d, fan_in=hidden)

    def contexts(self) -> Contexts:
        return Contexts(text=PromptVectors(context=self.context()))

    def contexts_of_images(self, image_features: Tensor) -> Tensor:
        """Return (B, M, D); outside training, computed from the stored numbers."""
        layers = (self.w_1, self.b_1, self.w_2, self.b_2)
        if self.training:
            context, w_1, b_1, w_2, b_2 = self.context(), *(layer() for layer in layers)
        else:
            stored = (self.context.v.stored(), *(layer.stored() for layer in layers))
            context, w_1, b_1, w_2, b_2 = (_tensor(s, image_features.device) for s in stored)
        hidden = F.relu(F.linear(image_features, w_1, b_1))  # (B, E) -> (B, E/16)
        shifts = F.linear(hidden, w_2, b_2)  # (B, D)
        contexts: Tensor = context + shifts.unsqueeze(1)  # (B, M, D)
        return contexts

    def encodings(self) -> Encodings:
        return Encodings(
            text=Conditional(
                context=self.context.v.stored(),
                w_1=self.w_1.stored(),
                b_1=self.b_1.stored(),
                w_2=self.w_2.stored(),
                b_2=self.b_2.stored(),
            )
        )

    def after_update(self, step_info: StepInfo) -> None:
        update_codebooks(self, step_info)

    def log_metrics(self) -> dict[str, int | float]:
        return codebook_metrics(self)


def _tensor(stored: StoredTensor, device: torch.device) -> Tensor:
    return torch.from_numpy(dequantize(stored).astype(np.float32)).to(device)


METHOD = Method(
    name="cocoop",
    summary="A context and a network that shifts it for each image (CoCoOp); not servable.",
    paper="CoCoOp, arXiv 2203.05557, section 3.2",
    settings=CocoopSettings,
    learner=Cocoop,
    learning_rate=0.002,
    learning_rates=(0.002, 0.01, 0.05),
)
