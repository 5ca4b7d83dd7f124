"""Codebooks for learned numbers (Quantized Prompt, ECCV 2024, sections 4.2 and 4.3).

A tensor W is normalized, ``(W - mean) / std`` over all its numbers; each number is replaced by the
nearest of ``2**b`` centers and scaled back. The file stores the centers already scaled back and
rounded to float16, so mean and standard deviation take no room, and training uses the same rounded
numbers: what is trained on is what is stored, bit for bit.

Gradients go straight through: W itself stays float32 and is what the optimizer updates, as if the
codebook were not there. The paper prints the derivative as x; it must be 1. Centers, mean and
standard deviation get no gradient.

The centers are made by k-means from the initial W and kept while they fit ("constrained adaptive
clustering", section 4.3): every ``recluster_interval`` steps, W as it was when they were made
(W_old) and W as it is now go through the same centers. If the histograms of their indices differ by
a KL divergence of more than ``recluster_above``, new centers are made.

The paper leaves open, and this file decides:

* W_old is normalized by its own mean and standard deviation, so that a mere change of scale, which
  leaves every index as it is, makes no new codebook.
* Half a count is added to every bin, so that an empty one does not make the divergence infinite.
* The condition on the error, which only its conclusion names, compares mean squared errors of
  the normalized numbers.
* Threshold and interval: the defaults of ``CodebookSettings``.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from prompt_serve.prompts.quantized_tensor import BITS, QuantizedTensor
from prompt_serve.training.quantization.kmeans import cluster_centers
from prompt_serve.training.settings import MethodSettings, choice, number, switch, whole
from prompt_serve.types import HalfArray

Quantization = Literal["qat", "ptq"]


@dataclass(frozen=True, kw_only=True)
class CodebookSettings(MethodSettings):
    """Settings of methods whose values can be stored in codebooks."""

    bits: int | None = choice(
        None,
        BITS,
        "Bits per learned number, through a codebook.",
        unset="float16 numbers, no codebook",
    )
    quantization: Quantization = choice(
        "qat", get_args(Quantization),
        "Quantize in training (qat), or after training without a codebook (ptq).",
    )  # fmt: skip
    recluster_above: float = number(
        0.01, 0.0, 100.0, "KL divergence of the code histogram above which a new codebook is made."
    )
    recluster_interval: int = whole(
        50, 1, 1_000_000, "Training steps between two checks of that divergence."
    )
    recluster_on_error: bool = switch(
        False, "Also require that the quantization error has grown before a new codebook is made."
    )

    def new_codebook(self, initial: Tensor) -> "AdaptiveCodebook | None":
        """Return a codebook to train with; None where values are trained as they are."""
        if self.bits is None or self.quantization == "ptq":
            return None
        return AdaptiveCodebook(
            initial,
            self.bits,
            recluster_above=self.recluster_above,
            recluster_interval=self.recluster_interval,
            recluster_on_error=self.recluster_on_error,
        )


class AdaptiveCodebook(nn.Module):
    """A codebook between a trainable tensor and the model.

    All its state is in buffers, so that a run can be resumed bit-exactly.

    Args:
        initial: the tensor before training; any shape.
        bits: b.
        recluster_above: KL divergence above which a new codebook is made.
        recluster_interval: steps between two checks.
        recluster_on_error: the quantization error must have grown, too.
    """

    centers: Tensor  # (2**b,) sorted, of normalized numbers
    anchor: Tensor  # the tensor for which they were made (W_old)
    divergence: Tensor  # KL at the last check
    reclusterings: Tensor

    def __init__(
        self,
        initial: Tensor,
        bits: int,
        *,
        recluster_above: float,
        recluster_interval: int,
        recluster_on_error: bool,
    ) -> None:
        super().__init__()
        self.centers = nn.Buffer(fitted_centers(initial, bits))
        self.anchor = nn.Buffer(initial.detach().clone())
        self.divergence = nn.Buffer(torch.zeros(()))
        self.reclusterings = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._bits = bits
        self._interval = recluster_interval
        self._threshold = recluster_above
        self._on_error = recluster_on_error

    def forward(self, values: Tensor) -> Tensor:
        """Return the stored form of ``values``; the gradient passes straight through."""
        indices, codebook = _encode(values.detach(), self.centers)
        # The paper's W + (W_q - W) rounds; this is W_q to the last bit, with the same gradient.
        return codebook.float()[indices] + (values - values.detach())

    def coded(self, values: Tensor) -> QuantizedTensor:
        """Return ``values`` as the prompt file stores them."""
        return _coded(values.detach(), self.centers)

    @torch.no_grad()
    def after_update(self, values: Tensor, step: int, kept: Tensor | None = None) -> None:
        """Make a new codebook if the values have moved away from this one.

        Args:
            values: in the shape of ``initial``.
            step: number of the step that was done, from 0.
            kept: mask of the numbers that still count, where others were pruned.
        """
        if (step + 1) % self._interval:
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
    """Put numbers that were learned without a codebook into one (PTQ)."""
    tensor = torch.from_numpy(values.astype(np.float32))
    return _coded(tensor, fitted_centers(tensor, bits))


def saves_bytes(size: int, bits: int) -> bool:
    """Return True if indices and codebook of ``size`` numbers take fewer bytes than float16.

    They do not for the four numbers of DIP's first factor at two bits or more.
    """
    indices, codebook = -(-size * bits // 8), 2 * (1 << bits)
    return indices + codebook < 2 * size


def normalized(values: Tensor) -> Tensor:
    """Scale to mean 0 and standard deviation 1; numbers that are all alike become zeros."""
    mean, std = _mean_and_std(values)
    return (values - mean) / std


def nearest(numbers: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest of sorted centers for each number; of two, the lower."""
    return torch.bucketize(numbers, (centers[1:] + centers[:-1]) / 2)


def fitted_centers(values: Tensor, bits: int, start: Tensor | None = None) -> Tensor:
    """Return centers (2**bits,) of the normalized numbers, on the device of ``values``.

    Args:
        values: any shape.
        bits: per index.
        start: centers to improve; None starts at quantiles.
    """
    if not values.numel():
        return torch.zeros(2**bits, device=values.device)
    numbers = normalized(values.detach()).flatten().double().cpu().numpy()
    first = None if start is None else start.double().cpu().numpy()
    centers = cluster_centers(numbers, 2**bits, first)
    return torch.from_numpy(centers.astype(np.float32)).to(values.device)


def histogram_divergence(current: Tensor, old: Tensor) -> float:
    """Return KL(p_current || p_old) of two histograms (K,) of counts, in nats; always finite."""
    p, q = (
        (counts.double() + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (current, old)
    )
    return float((p * (p / q).log()).sum())


def _mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and population standard deviation of all numbers, 1 in place of 0."""
    if not values.numel():
        return values.new_zeros(()), values.new_ones(())
    std = values.std(correction=0)
    return values.mean(), torch.where(std > 0, std, torch.ones_like(std))


def _encode(values: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices in the shape of ``values``, and the float16 numbers (2**b,) they stand for."""
    mean, std = _mean_and_std(values)
    return nearest((values - mean) / std, centers), (centers * std + mean).to(torch.float16)


def _coded(values: Tensor, centers: Tensor) -> QuantizedTensor:
    indices, codebook = _encode(values, centers)
    return QuantizedTensor(
        indices=indices.to(torch.uint8).cpu().numpy(), codebook=codebook.cpu().numpy()
    )
