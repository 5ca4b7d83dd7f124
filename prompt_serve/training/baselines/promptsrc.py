"""PromptSRC's text side: deep vectors that regulate themselves (Khattak et al., ICCV 2023,
arXiv 2307.06948).

Three regularizers, each against forgetting what the frozen model knows:

* section 3.2.1: the mean absolute difference of the class features to those of the frozen model,
  times ``guidance`` (25), and ``KL(p_zs || p)`` of the scores, times ``logit_guidance`` (1);
* section 3.2.2: what is learned is an average over the epochs with Gaussian weights, which lets the
  early, unformed and the last, overfitted vectors count little;
* section 3.2.3: the frozen features are the average of many diverse templates.

Traps: the differences are averaged over all C x E numbers and the divergence over B x C, as in
the paper's own runs; so the weight of 25 falls on numbers near 0.01. The mean of the weights is
counted in epochs from 1: epoch 15 of 20, with a spread of 1, is ``average_mean`` 0.75 and
``average_std`` 0.05. Optimization ends with an epoch like any other; the average takes its place
after that.

The paper prompts both towers. Here the image tower is as it was, so image features can be looked up
and its regularizer is zero.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.training.baselines.templates import DIVERSE_TEMPLATES
from prompt_serve.training.methods.base import LearnerInputs, Method, StepInfo, StepOutput
from prompt_serve.training.methods.branches import TextVectors
from prompt_serve.training.methods.parameters import CODEBOOK_SETTINGS, whole_text_vectors

PAPER_DEPTH = 9


class PromptSrc(TextVectors):
    """J x M x D numbers; J is 9 where none is given, or all blocks of a smaller tower."""

    frozen: Tensor  # (C, E) class features of the diverse templates

    def __init__(self, start: LearnerInputs) -> None:
        config = start.config
        layers = start.text_layers
        depth = start.depth(layers) if config.depth else min(PAPER_DEPTH, layers)
        super().__init__(whole_text_vectors(start, depth))
        self.register_buffer("frozen", start.frozen_features(DIVERSE_TEMPLATES), persistent=False)
        self._weight = config.guidance or 0.0
        self._logit_weight = config.logit_guidance
        self._mean, self._std = config.average_mean, config.average_std
        for number, parameter in enumerate(self.parameters()):
            self.register_buffer(f"average_{number}", torch.zeros_like(parameter))

    def loss(self, step: StepOutput) -> Tensor:
        features = F.l1_loss(step.class_features, self.frozen)
        return step.cross_entropy + self._weight * features + self._logit_weight * self.scores(step)

    def scores(self, step: StepOutput) -> Tensor:
        """``KL(p_zs || p)``, the mean over images and classes."""
        return step.divergence_from(self.frozen).mean()

    @torch.no_grad()
    def after_epoch(self, moment: StepInfo) -> None:
        weight = epoch_weights(moment.epochs, self._mean, self._std)[moment.epoch]
        for number, parameter in enumerate(self.parameters()):
            average = self.get_buffer(f"average_{number}")
            average += weight * parameter
            if moment.epoch + 1 == moment.epochs:
                parameter.copy_(average)


def epoch_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Weights of epochs 1 to ``epochs``, Gaussian around ``mean * epochs``; they sum to one.

    Args:
        epochs: of the run.
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
    learner=PromptSrc,
    learning_rate=0.0025,
    learning_rates=(0.0025, 0.01, 0.05),
    settings=CODEBOOK_SETTINGS
    | {
        "init",
        "depth",
        "noise_std",
        "guidance",
        "logit_guidance",
        "average_mean",
        "average_std",
    },
    defaults={"guidance": 25.0},
)
