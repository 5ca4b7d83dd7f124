"""KgCoOp: CoOp kept near the hand-written template (Yao et al., CVPR 2023, arXiv 2303.13283).

Equation 5: ``L = L_ce + w 1/C sum_i ||g_i - g_i^clip||^2``, the squared distance of the class
features (of unit length) to those that the frozen model gives the template; w = 8. At the template
itself the distance is zero, and so is its gradient.

Trap: for unit vectors the squared distance is ``2 - 2 cos``, so a weight on ``1 - cos``
counts half.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prompt_serve.training.methods.base import LearnerInputs, Method, StepOutput
from prompt_serve.training.methods.coop import Coop, CoopSettings
from prompt_serve.training.settings import number


@dataclass(frozen=True, kw_only=True)
class KgCoopSettings(CoopSettings):
    """Settings of KgCoOp."""

    guidance: float = number(
        8.0, 0.0, 1e4, "Weight w of the distance to the template's class features."
    )


class KgCoop(Coop):
    """The numbers of CoOp."""

    frozen: Tensor  # (C, E) class features of the template

    def __init__(self, inputs: LearnerInputs, settings: KgCoopSettings) -> None:
        super().__init__(inputs, settings)
        frozen = inputs.frozen_features((inputs.template,))
        self.register_buffer("frozen", frozen, persistent=False)
        self._weight = settings.guidance

    def loss(self, step: StepOutput) -> Tensor:
        return step.cross_entropy + self._weight * mean_distance(step.class_features, self.frozen)


def mean_distance(features: Tensor, frozen: Tensor) -> Tensor:
    """Return the mean over C of the squared distances between (C, E) and (C, E)."""
    return torch.sum((features - frozen) ** 2, dim=-1).mean()


METHOD = Method(
    name="kgcoop",
    summary="CoOp, kept near the template's class features (KgCoOp).",
    paper="KgCoOp, arXiv 2303.13283, eq. 5",
    settings=KgCoopSettings,
    learner=KgCoop,
    learning_rate=0.002,
    learning_rates=(0.002, 0.01, 0.05),
)
