"""PromptSRC's text side: deep vectors that regulate themselves (Khattak et al., ICCV 2023,
arXiv 2307.06948).

Three regularizers keep what the frozen model knows:

* section 3.2.1: the mean absolute difference of the class features to those of the frozen model,
  times ``guidance`` (25), and ``KL(p_zs || p)`` of the scores, times ``logit_guidance`` (1);
* section 3.2.2: the result is an average over the epochs with Gaussian weights, so that the early
  and the last, overfitted vectors count little;
* section 3.2.3: the frozen features are the average of many diverse templates.

Traps: the differences are averaged over all C x E numbers and the divergence over B x C, as in
the paper's own runs; so the weight of 25 falls on numbers near 0.01. The mean of the weights is
counted in epochs from 1: epoch 15 of 20, with a spread of 1, is ``average_mean`` 0.75 and
``average_std`` 0.05. Optimization ends with an epoch like any other; the average takes its place
after that.

The paper prompts both towers. Here the image tower is not prompted, so image features can be cached
and its regularizer is zero.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.training.baselines.templates import DIVERSE_TEMPLATES
from prompt_serve.training.methods.base import LearnerInputs, Method, StepInfo, StepOutput
from prompt_serve.training.methods.coop import WholeTextSettings, whole_text_vectors
from prompt_serve.training.methods.parameters import TextVectors, prompted_blocks
from prompt_serve.training.settings import number, whole

DEPTH = 9  # the paper's


@dataclass(frozen=True, kw_only=True)
class PromptSrcSettings(WholeTextSettings):
    """Settings of PromptSRC."""

    depth: int | None = whole(
        None, 1, 1_000, "Number J of text-tower blocks with vectors of their own.",
        unset="9, or all blocks of a smaller tower",
    )  # fmt: skip
    guidance: float = number(
        25.0, 0.0, 1e4, "Weight of the distance to the frozen model's class features."
    )
    logit_guidance: float = number(
        1.0, 0.0, 1e4, "Weight of the divergence from the frozen model's predictions."
    )
    average_mean: float = number(
        0.75, 0.0, 1.0, "Mean of the Gaussian average over the epochs, as a share of the run."
    )
    average_std: float = number(
        0.05, 0.0, 1.0,
        "Standard deviation of that average, as a share of the run; 0 keeps the last epoch.",
    )  # fmt: skip


class PromptSrc(TextVectors):
    """J x M x D numbers; J is 9 by default, or all blocks of a smaller tower."""

    frozen: Tensor  # (C, E) class features of the diverse templates

    def __init__(self, inputs: LearnerInputs, settings: PromptSrcSettings) -> None:
        depth = prompted_blocks(settings.depth, inputs.text_layers, default=DEPTH)
        super().__init__(whole_text_vectors(inputs, settings, depth))
        self.register_buffer("frozen", inputs.frozen_features(DIVERSE_TEMPLATES), persistent=False)
        self._weight = settings.guidance
        self._logit_weight = settings.logit_guidance
        self._mean, self._std = settings.average_mean, settings.average_std
        for index, parameter in enumerate(self.parameters()):
            self.register_buffer(f"average_{index}", torch.zeros_like(parameter))

    def loss(self, step: StepOutput) -> Tensor:
        features = F.l1_loss(step.class_features, self.frozen)
        return step.cross_entropy + self._weight * features + self._logit_weight * self.scores(step)

    def scores(self, step: StepOutput) -> Tensor:
        """Return ``KL(p_zs || p)``, the mean over images and classes."""
        return step.divergence_from(self.frozen).mean()

    @torch.no_grad()
    def after_epoch(self, step_info: StepInfo) -> None:
        weight = epoch_weights(step_info.epochs, self._mean, self._std)[step_info.epoch]
        for index, parameter in enumerate(self.parameters()):
            average = self.get_buffer(f"average_{index}")
            average += weight * parameter
            if step_info.epoch + 1 == step_info.epochs:
                parameter.copy_(average)


def epoch_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Return Gaussian weights of epochs 1 to ``epochs``, centered at ``mean * epochs``; sum one.

    Args:
        epochs: number of epochs of the run.
        mean: as a share of the run.
        std: as a share of the run; 0 puts all weight on the last epoch.
    """
    if std == 0.0:
        return [0.0] * (epochs - 1) + [1.0]
    distances = [(epoch - mean * epochs) / (std * epochs) for epoch in range(1, epochs + 1)]
    # The nearest epoch has weight one before scaling: a narrow spread never leaves all at zero.
    nearest = min(distance**2 for distance in distances)
    weights = [math.exp((nearest - distance**2) / 2) for distance in distances]
    return [weight / sum(weights) for weight in weights]


METHOD = Method(
    name="promptsrc",
    summary="Deep text vectors that stay near many templates, averaged over epochs (PromptSRC).",
    paper="PromptSRC, arXiv 2307.06948, section 3.2",
    settings=PromptSrcSettings,
    learner=PromptSrc,
    learning_rate=0.0025,
    learning_rates=(0.0025, 0.01, 0.05),
)
