"""Outcome of a training run: the prompt, its measurements, and the log of its epochs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.training.without_torch.evaluation import ZeroShotComparison


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of the log."""

    epoch: int  # from 0
    learning_rate: float
    loss: float  # mean over the steps of the epoch
    val_accuracy: float | None  # after the epoch; None without validation images
    val_loss: float | None
    idk: tuple[float, ...]  # ID_k for k = 1, 2, ...; see ``information_density``
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)  # ``PromptLearner.log_metrics``

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished prompt, its measurements and the history of its training."""

    prompt: Prompt
    comparisons: Mapping[str, ZeroShotComparison]  # by part: "val", "test"; only those that exist
    history: tuple[EpochRecord, ...]
    images: Mapping[str, int]  # used, by part
    notes: tuple[str, ...]  # for the user
    seconds: Mapping[str, float]  # by stage: "features", "learning", "evaluation"
    trained_numbers: int = 0  # changed by the optimizer; the file may hold fewer
