"""KgCoOp: CoOp held near the hand-written template (Yao et al., CVPR 2023, arXiv 2303.13283).

Equation 5: ``L = L_ce + w 1/C sum_i ||g_i - g_i^clip||^2``, the squared distance of the class
features (of unit length) to those that the frozen model gives to the template; w = 8. Nothing
pulls at the template itself, where the distance is zero.

Trap: for unit vectors the squared distance is ``2 - 2 cos``, so a weight on ``1 - cos``
counts half.
"""

import torch
from torch import Tensor

from prompt_serve.training.methods.base import LearnerInputs, Method, StepOutput
from prompt_serve.training.methods.coop import SETTINGS, Coop


class KgCoop(Coop):
    """The numbers of CoOp."""

    frozen: Tensor  # (C, E) class features of the template

    def __init__(self, start: LearnerInputs) -> None:
        super().__init__(start)
        self.register_buffer(
            "frozen", start.frozen_features((start.config.template,)), persistent=False
        )
        self._weight = start.config.guidance or 0.0

    def loss(self, step: StepOutput) -> Tensor:
        return step.cross_entropy + self._weight * mean_distance(step.class_features, self.frozen)


def mean_distance(features: Tensor, frozen: Tensor) -> Tensor:
    """Mean over the classes of the squared distance of (C, E) and (C, E)."""
    return torch.sum((features - frozen) ** 2, dim=-1).mean()


METHOD = Method(
    name="kgcoop",
    summary="CoOp, held near the template's class features (KgCoOp).",
    paper="KgCoOp, arXiv 2303.13283, eq. 5",
    learner=KgCoop,
    learning_rate=0.002,
    learning_rates=(0.002, 0.01, 0.05),
    settings=SETTINGS | {"guidance"},
    defaults={"guidance": 8.0},
)
