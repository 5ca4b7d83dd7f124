"""Codebooks for learned numbers (Quantized Prompt, ECCV 2024, sections 4.2 and 4.3).

A tensor W is normalized, ``(W - mean) / std`` over all its numbers; each number becomes the nearest
of ``2**b`` centers; what comes out is scaled back. The file stores the centers scaled back already
and rounded to float16, so mean and standard deviation need no room, and the same rounded numbers
are used while learning: what is trained on is what is stored, bit for bit.

Gradients go straight through: W itself stays float32 and is what the optimizer updates, as if the
codebook were not there. The paper prints the derivative as x; it must be 1. Centers, mean and
standard deviation get no gradient.

The centers are made by k-means from the initial W and kept while they fit ("constrained adaptive
clustering", section 4.3): every ``recluster_interval`` steps the numbers of then and now go through
the same centers, and only where the histograms of their indices differ by a KL divergence of more
than ``recluster_above`` are the centers made anew.

Not in the paper, which leaves these open:

* W of then is normalized by its own mean and standard deviation, so that a mere change of scale,
  which leaves every index as it is, asks for nothing.
* Half a count is added to every bin, so that an empty one does not make the divergence infinite.
* The condition on the error, which only its conclusion names, compares mean squared errors of
  the normalized numbers.
* Threshold and interval; see ``TrainConfig``.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.quantization.kmeans import cluster_centers
from prompt_serve.types import HalfArray

if TYPE_CHECKING:
    from prompt_serve.training.methods.base import StepInfo


class AdaptiveCodebook(nn.Module):
    """A codebook that a trainable tensor is seen through while it is learned.

    All its state is in buffers, so that a run can be resumed exactly.

    Args:
        initial: the tensor as it starts; any shape.
        config: bits, and when to make the codebook anew.
    """

    centers: Tensor  # (2**b,) sorted, of normalized numbers
    anchor: Tensor  # the tensor for which they were made (W_old)
    divergence: Tensor  # KL at the last look
    reclusterings: Tensor

    def __init__(self, initial: Tensor, config: TrainConfig) -> None:
        super().__init__()
        if config.bits is None:
            raise TypeError("A codebook wants a number of bits.")
        self.centers = nn.Buffer(fitted_centers(initial, config.bits))
        self.anchor = nn.Buffer(initial.detach().clone())
        self.divergence = nn.Buffer(torch.zeros(()))
        self.reclusterings = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._bits = config.bits
        self._interval = config.recluster_interval
        self._threshold = config.recluster_above
        self._on_error = config.recluster_on_error

    def forward(self, values: Tensor) -> Tensor:
        """The stored form of ``values``, with the gradient passed straight through."""
        indices, codebook = _encode(values.detach(), self.centers)
        # The paper's W + (W_q - W) rounds; this is W_q to the last bit, with the same gradient.
        return codebook.float()[indices] + (values - values.detach())

    def coded(self, values: Tensor) -> QuantizedTensor:
        """What the prompt file stores of ``values``."""
        return _coded(values.detach(), self.centers)

    @torch.no_grad()
    def after_update(self, values: Tensor, moment: "StepInfo", kept: Tensor | None = None) -> None:
        """Make the codebook anew where the numbers have moved away from it.

        Args:
            values: in the shape of ``initial``.
            moment: of the step that was done.
            kept: mask of the numbers that still count, where others were pruned.
        """
        if (moment.step + 1) % self._interval:
            return
        kept = torch.ones_like(values, dtype=torch.bool) if kept is None else kept
        current, old = normalized(values[kept]), normalized(self.anchor[kept])
        self.divergence.fill_(histogram_divergence(self._histogram(current), self._histogram(old)))
        if float(self.divergence) <= self._threshold:
            return
        if self._on_error and self._error(current) <= self._error(old):
            return
        self.centers.copy_(fitted_centers(values[kept], self._bits, start=self.centers))
        self.anchor.copy_(values)
        self.reclusterings += 1

    def _histogram(self, numbers: Tensor) -> Tensor:
        indices = nearest(numbers, self.centers).flatten()
        return torch.bincount(indices, minlength=len(self.centers))

    def _error(self, numbers: Tensor) -> float:
        return float((self.centers[nearest(numbers, self.centers)] - numbers).square().mean())


def quantized(values: HalfArray, bits: int) -> QuantizedTensor:
    """Numbers that were learned without a codebook, in one (PTQ)."""
    tensor = torch.from_numpy(values.astype(np.float32))
    return _coded(tensor, fitted_centers(tensor, bits))


def saves_bytes(size: int, bits: int) -> bool:
    """Whether indices and codebook of ``size`` numbers take fewer bytes than float16 numbers.

    They do not for the four numbers of DIP's first factor at two bits or more.
    """
    indices, codebook = -(-size * bits // 8), 2 * (1 << bits)
    return indices + codebook < 2 * size


def normalized(values: Tensor) -> Tensor:
    """With mean 0 and standard deviation 1; numbers that are all alike become zeros."""
    mean, std = _mean_and_std(values)
    return (values - mean) / std


def nearest(numbers: Tensor, centers: Tensor) -> Tensor:
    """Index of the nearest of sorted centers for each number; of two, the lower."""
    return torch.bucketize(numbers, (centers[1:] + centers[:-1]) / 2)


def fitted_centers(values: Tensor, bits: int, start: Tensor | None = None) -> Tensor:
    """Centers (2**bits,) of the normalized numbers, on the device of ``values``.

    Args:
        values: any shape.
        bits: of an index.
        start: centers to improve on; None starts at quantiles.
    """
    if not values.numel():
        return torch.zeros(2**bits, device=values.device)
    numbers = normalized(values.detach()).flatten().double().cpu().numpy()
    first = None if start is None else start.double().cpu().numpy()
    centers = cluster_centers(numbers, 2**bits, first)
    return torch.from_numpy(centers.astype(np.float32)).to(values.device)


def histogram_divergence(current: Tensor, old: Tensor) -> float:
    """KL(p_current || p_old) of two histograms (K,) of counts, in nats; never infinite."""
    p, q = (
        (counts.double() + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (current, old)
    )
    return float((p * (p / q).log()).sum())


def _mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Over all numbers; the standard deviation of the population, 1 in place of 0."""
    if not values.numel():
        return values.new_zeros(()), values.new_ones(())
    std = values.std(correction=0)
    return values.mean(), torch.where(std > 0, std, torch.ones_like(std))


def _encode(values: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Indices in the shape of ``values``, and the float16 numbers (2**b,) that they stand for."""
    mean, std = _mean_and_std(values)
    return nearest((values - mean) / std, centers), (centers * std + mean).to(torch.float16)


def _coded(values: Tensor, centers: Tensor) -> QuantizedTensor:
    indices, codebook = _encode(values, centers)
    return QuantizedTensor(
        indices=indices.to(torch.uint8).cpu().numpy(), codebook=codebook.cpu().numpy()
    )
