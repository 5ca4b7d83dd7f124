"""Learners whose vectors stand in one tower, one ``Vectors`` for each prompted block."""

from collections.abc import Sequence

from torch import Tensor, nn

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.encodings import Deep, Dense, LowRank
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.methods.base import (
    Contexts,
    Encodings,
    LearnerInputs,
    PromptLearner,
    StepInfo,
)
from prompt_serve.training.methods.parameters import Vectors, codebook_metrics, update_codebooks


class BlockVectors(PromptLearner):
    """J blocks with vectors of their own; which tower has them is said below."""

    def __init__(self, blocks: Sequence[Vectors]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def after_update(self, moment: StepInfo) -> None:
        update_codebooks(self, moment)

    def log_metrics(self) -> dict[str, int | float]:
        return codebook_metrics(self)


class TextVectors(BlockVectors):
    """Vectors of the text tower."""

    def contexts(self) -> Contexts:
        return Contexts(text=branch_of(self.blocks))

    def encodings(self) -> Encodings:
        return Encodings(text=encoding_of(self.blocks))


class ImageVectors(BlockVectors):
    """Vectors of the image tower."""

    def contexts(self) -> Contexts:
        return Contexts(image=branch_of(self.blocks))

    def encodings(self) -> Encodings:
        return Encodings(image=encoding_of(self.blocks))


def branch_of(blocks: nn.ModuleList) -> PromptVectors[Tensor]:
    """The vectors of this step, block by block."""
    first, *deeper = (block() for block in blocks)
    return PromptVectors(context=first, deeper=tuple(deeper))


def encoding_of(blocks: nn.ModuleList) -> Dense | LowRank | Deep:
    """What the prompt file stores of some blocks' ``Vectors``."""
    layers = tuple(block.layer() for block in blocks)  # type: ignore[operator]  # they are Vectors
    return layers[0] if len(layers) == 1 else Deep(layers=layers)


def check_placing(start: LearnerInputs) -> None:
    """Raise ConfigInvalid where deep vectors would not stand in front of every class name."""
    config = start.config
    shared = config.class_position == "end" and not config.class_specific
    if (config.depth or 1) > 1 and not shared:
        raise ConfigInvalid(
            "Vectors of deeper blocks (depth > 1) want one context for all classes with the class "
            "name at the end; leave class_specific and class_position out."
        )
