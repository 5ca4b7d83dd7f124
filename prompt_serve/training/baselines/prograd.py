"""ProGrad: CoOp that takes no step against the zero-shot model (Zhu et al., ICCV 2023,
arXiv 2205.14865).

Two gradients of the learned numbers: G_d of the cross-entropy with the labels, and G_g of
``KL(p_zs || p)``, the divergence from the zero-shot prediction of the template. Equation 5:

    G = G_d                                         where G_d . G_g >= 0
    G = G_d - lambda (G_d . G_g) / ||G_g||^2 G_g    otherwise

With lambda = 1 what opposes G_g is taken out whole. The paper has one tensor of context vectors and
one product G_d . G_g; here, too, all learned numbers are one vector, however many blocks they are
spread over, so that no part of them can outvote the direction of the whole.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from prompt_serve.training.methods.base import LearnerInputs, Method, StepOutput
from prompt_serve.training.methods.coop import SETTINGS, Coop


class ProGrad(Coop):
    """The numbers of CoOp."""

    frozen: Tensor  # (C, E) class features of the template

    def __init__(self, start: LearnerInputs) -> None:
        super().__init__(start)
        self.register_buffer(
            "frozen", start.frozen_features((start.config.template,)), persistent=False
        )
        self._weight = 1.0 if start.config.guidance is None else start.config.guidance

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
        """``KL(p_zs || p)``, the mean over the images."""
        return step.divergence_from(self.frozen).sum(-1).mean()


def without_opposition(
    own: Sequence[Tensor], general: Sequence[Tensor], weight: float
) -> list[Tensor]:
    """Gradients ``own``, less ``weight`` of their part that points against ``general``.

    Each is one vector in several tensors of any shapes.
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
    learner=ProGrad,
    learning_rate=0.002,
    learning_rates=(0.002, 0.01, 0.05),
    settings=SETTINGS | {"guidance"},
    defaults={"guidance": 1.0},
)
