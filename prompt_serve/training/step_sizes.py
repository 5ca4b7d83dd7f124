"""One currency for learning rates: how far a step moves the context, relative to its length.

SGD at one learning rate moves the vectors of different methods, blocks, towers and backbones by
amounts that differ a thousandfold: gradients grow with the temperature and shrink with the width,
deeper blocks start shorter than the template's words, and a product of factors moves by the squared
norm of the factors. With ``step_unit = "relative"`` every parameter has its own learning rate, so
that a rate r means the same for all: while all classes are equally likely, a step moves the vectors
P of a block by ``r |P_init|``.

The gradient's norm is measured before the first step, on a few batches, for the loss
``mean_c logit_c - logit_y``, whose gradient is that of cross-entropy where all classes are equally
likely. Cross-entropy itself would not do: where the start is already right its gradient is nearly
zero, and the rate would have no bound. From there on it is plain SGD: steps shrink with the error.

On ViT-B/16 widths, CoOp's 0.002 is a relative rate of about 0.002.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prompt_serve.training.methods.base import Contexts, PromptLearner
from prompt_serve.training.methods.parameters import StepScales, VectorModule

MEASURED_BATCHES = 4


@dataclass
class _Calls:
    """Inputs and outputs of a module that makes vectors, and the norms of their gradients."""

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    gradients: list[float] = field(default_factory=list)

    def record(self, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        for output in outputs:
            output.retain_grad()
        self.inputs = tuple(tensor.detach() for tensor in inputs)
        self.outputs = outputs

    def add_gradient(self) -> None:
        known = [output.grad for output in self.outputs if output.grad is not None]
        self.gradients.append(_norm(known))

    @property
    def scale(self) -> float:
        """Learning rate at which a step is as long as the vectors; 1 without a gradient."""
        gradient = sum(self.gradients) / max(1, len(self.gradients))
        length = _norm([output.detach() for output in self.outputs])
        return length / gradient if gradient > 0.0 and length > 0.0 else 1.0


class StepSizes:
    """Measures a learner before its first step; ``scales`` has the result.

    Args:
        learner: with the values it starts from.
    """

    def __init__(self, learner: PromptLearner) -> None:
        self._learner = learner
        self._modules = [m for m in learner.modules() if isinstance(m, VectorModule)]
        self._calls = {id(module): _Calls() for module in self._modules}
        self._whole = _Calls()  # all contexts, for parameters outside of such modules

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Record what the modules compute."""
        hooks = [module.register_forward_hook(self._record) for module in self._modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        self._calls[id(module)].record(inputs, outputs)

    def add(self, contexts: Contexts, logits: Tensor, labels: Tensor) -> None:
        """Measure one batch.

        Args:
            contexts: those of ``logits``, made within ``measuring``.
            logits: (B, C), with gradients.
            labels: (B,).
        """
        self._whole.record((), _tensors(contexts))
        expected = logits.gather(1, labels[:, None])[:, 0]
        (logits.mean(dim=1) - expected).mean().backward()  # type: ignore[no-untyped-call]
        for calls in (*self._calls.values(), self._whole):
            calls.add_gradient()
        # Vectors that are learned whole are parameters, whose gradients would add up.
        self._learner.zero_grad(set_to_none=True)

    def scales(self) -> StepScales:
        """Return each parameter with the learning rate that stands for the relative rate 1."""
        found: dict[nn.Parameter, float] = {}
        for module in self._modules:
            calls = self._calls[id(module)]
            if calls.outputs:
                found |= dict(module.step_scales(calls.scale, calls.inputs))
        return [(p, found.get(p, self._whole.scale)) for p in self._learner.parameters()]


def _tensors(contexts: Contexts) -> tuple[Tensor, ...]:
    both = (contexts.text, contexts.image)
    tensors = [
        tensor
        for tower in both
        for tensor in (tower.context, *tower.deeper, *tower.keys_values)
        if tensor is not None and tensor.requires_grad
    ]
    return tuple(tensors)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.norm() for t in tensors]).norm()) if tensors else 0.0
