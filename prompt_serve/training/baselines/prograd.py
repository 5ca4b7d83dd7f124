"""ProGrad: CoOp whose steps never oppose the zero-shot model (Zhu et al., ICCV 2023,
arXiv 2205.14865).

The learned numbers have two gradients: G_d of the cross-entropy with the labels, and G_g of
``KL(p_zs || p)``, the divergence from the zero-shot prediction of the template. Equation 5:

    G = G_d                                         where G_d . G_g >= 0
    G = G_d - lambda (G_d . G_g) / ||G_g||^2 G_g    otherwise

With lambda = 1 the component that opposes G_g is removed entirely. The paper has one tensor of
context vectors and one product G_d . G_g; here, too, the learned numbers of all blocks count as one
vector, so that no single block decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prompt_serve.training.methods.base import LearnerInputs, Method, StepOutput
from prompt_serve.training.methods.coop import Coop, CoopSettings
from prompt_serve.training.settings import number


@dataclass(frozen=True, kw_only=True)
class ProGradSettings(CoopSettings):
    """Settings of ProGrad."""

    guidance: float = number(
        1.0, 0.0, 1e4, "Share lambda of the opposing gradient component that is removed."
    )


class ProGrad(Coop):
    """The numbers of CoOp."""

    frozen: Tensor  # (C, E) class features of the template

    def __init__(self, inputs: LearnerInputs, settings: ProGradSettings) -> None:
        super().__init__(inputs, settings)
        frozen = inputs.frozen_features((inputs.template,))
        self.register_buffer("frozen", frozen, persistent=False)
        self._weight = settings.guidance

    def backward(self, step: StepOutput) -> Tensor:
        learned = list(self.parameters())
        loss = step.cross_entropy
        general = torch.autograd.grad(self.divergence(step), learned, retain_graph=True)
        own = torch.autograd.grad(loss, learned)
        for parameter, gradient in zip(
            learned, without_opposition(own, general, self._weight), strict=True
        ):
            parameter.grad = gradient
        return loss.detach()

    def divergence(self, step: StepOutput) -> Tensor:
        """Return ``KL(p_zs || p)``, the mean over the images."""
        return step.divergence_from(self.frozen).sum(-1).mean()


def without_opposition(
    own: Sequence[Tensor], general: Sequence[Tensor], weight: float
) -> list[Tensor]:
    """Return ``own`` minus ``weight`` times its component that opposes ``general`` (eq. 5).

    Each argument is one vector, split into tensors of any shapes.
    """
    product = torch.stack([torch.sum(a * b) for a, b in zip(own, general, strict=True)]).sum()
    squared = torch.stack([torch.sum(b**2) for b in general]).sum()
    # Where the divergence has no slope (at the template itself) there is nothing to oppose.
    share = weight * torch.clamp(product, max=0.0) / squared.clamp(min=torch.finfo().tiny)
    return [a - share * b for a, b in zip(own, general, strict=True)]


METHOD = Method(
    name="prograd",
    summary="CoOp without the steps that oppose the template's predictions (ProGrad).",
    paper="ProGrad, arXiv 2205.14865, eq. 5",
    settings=ProGradSettings,
    learner=ProGrad,
    learning_rate=0.002,
    learning_rates=(0.002, 0.01, 0.05),
)
