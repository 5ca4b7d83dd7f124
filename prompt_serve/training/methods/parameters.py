"""The parts that learners are made of: one trainable tensor, the vectors of one block, and learners
with a row of such blocks in one tower.

Any trainable tensor can be held in a codebook, so every method can be quantized: QCoOp is CoOp
with one, QMaPLe is MaPLe with one for each prompt and each projection.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from prompt_serve.errors import ConfigInvalid, counted
from prompt_serve.prompts.encodings import Deep, Dense, Layer, LowRank
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.quantized_tensor import StoredTensor
from prompt_serve.training.methods.base import (
    Contexts,
    Encodings,
    PromptLearner,
    StepInfo,
    to_float16,
)
from prompt_serve.training.quantization.codebook import (
    AdaptiveCodebook,
    CodebookSettings,
    quantized,
    saves_bytes,
)
from prompt_serve.training.settings import Placement


class QuantizableParameter(nn.Module):
    """One trainable tensor, learned as it is or through a codebook.

    A tensor so small that its codebook would take more bytes than it saves stays as it is.
    """

    def __init__(self, initial: Tensor, settings: CodebookSettings) -> None:
        super().__init__()
        self.values = nn.Parameter(initial.clone())
        worthwhile = settings.bits is not None and saves_bytes(initial.numel(), settings.bits)
        self._bits = settings.bits if worthwhile else None
        self.codebook = settings.new_codebook(initial) if worthwhile else None

    def forward(self) -> Tensor:
        """Return the tensor of this step, with gradients (straight through the codebook)."""
        if self.codebook is None:
            return self.values
        through: Tensor = self.codebook(self.values)
        return through

    def stored(self) -> StoredTensor:
        """Return the tensor as the prompt file stores it."""
        if self.codebook is not None:
            return self.codebook.coded(self.values)
        if self._bits is not None:
            return quantized(to_float16(self.values), self._bits)
        return to_float16(self.values)


StepScales = list[tuple[nn.Parameter, float]]


class VectorModule(nn.Module, ABC):
    """Makes vectors of one tower from its parameters."""

    @abstractmethod
    def step_scales(self, scale: float, inputs: tuple[Tensor, ...]) -> StepScales:
        """Return a learning rate for each parameter, for steps of one length (``step_sizes``).

        Args:
            scale: learning rate at which a step on the vectors themselves would be as long as
                they are.
            inputs: of ``forward``.
        """


class Vectors(VectorModule):
    """The learned vectors (M, D) of one block."""

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the vectors of this step, (M, D) or (C, M, D)."""

    @abstractmethod
    def layer(self) -> Layer:
        """Return the vectors as the prompt file stores them."""


class BlockVectors(PromptLearner):
    """J blocks with vectors of their own; subclasses say in which tower."""

    def __init__(self, blocks: Sequence[Vectors]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def after_update(self, step_info: StepInfo) -> None:
        update_codebooks(self, step_info)

    def log_metrics(self) -> dict[str, int | float]:
        return codebook_metrics(self)


class TextVectors(BlockVectors):
    """Vectors in the text tower."""

    def contexts(self) -> Contexts:
        return Contexts(text=branch_of(self.blocks))

    def encodings(self) -> Encodings:
        return Encodings(text=encoding_of(self.blocks))


class ImageVectors(BlockVectors):
    """Vectors in the image tower."""

    def contexts(self) -> Contexts:
        return Contexts(image=branch_of(self.blocks))

    def encodings(self) -> Encodings:
        return Encodings(image=encoding_of(self.blocks))


def branch_of(blocks: nn.ModuleList) -> PromptVectors[Tensor]:
    """Return the vectors of this step, block by block."""
    first, *deeper = (block() for block in blocks)
    return PromptVectors(context=first, deeper=tuple(deeper))


def encoding_of(blocks: nn.ModuleList) -> Dense | LowRank | Deep:
    """Return the ``Vectors`` of some blocks as the prompt file stores them."""
    layers = tuple(block.layer() for block in blocks)  # type: ignore[operator]  # they are Vectors
    return layers[0] if len(layers) == 1 else Deep(layers=layers)


def prompted_blocks(depth: int | None, layers: int, default: int = 1) -> int:
    """Return J, the number of blocks with vectors of their own.

    Args:
        depth: the setting; None stands for ``default``, or for ``layers`` where that is less.
        layers: blocks of the tower, or of the smaller of two.
        default: the method's.

    Raises:
        ConfigInvalid: ``depth`` is more than ``layers``.
    """
    expected = depth or min(default, layers)
    if expected <= layers:
        return expected
    raise ConfigInvalid(
        f"depth is {expected}, but the tower has {counted(layers, 'block')}. Give {layers} or less."
    )


def check_placement(placement: Placement, depth: int | None) -> None:
    """Raise ConfigInvalid where deep vectors would not stand in front of every class name."""
    shared = placement.class_position == "end" and not placement.class_specific
    if (depth or 1) > 1 and not shared:
        raise ConfigInvalid(
            "Vectors of deeper blocks (depth > 1) need one context for all classes with the class "
            "name at the end; leave class_specific and class_position out."
        )


def update_codebooks(module: nn.Module, step_info: StepInfo) -> None:
    """Let every codebook in ``module`` check the updated values."""
    for part in module.modules():
        if isinstance(part, QuantizableParameter) and part.codebook is not None:
            part.codebook.after_update(part.values, step_info.step)


def codebook_metrics(module: nn.Module) -> dict[str, int | float]:
    """Return the number of re-clusterings in ``module``, and the largest KL divergence of the last
    check; nothing where there are no codebooks."""
    codebooks = [part for part in module.modules() if isinstance(part, AdaptiveCodebook)]
    if not codebooks:
        return {}
    return {
        "reclusterings": sum(int(codebook.reclusterings) for codebook in codebooks),
        "code_divergence": round(max(float(codebook.divergence) for codebook in codebooks), 6),
    }
