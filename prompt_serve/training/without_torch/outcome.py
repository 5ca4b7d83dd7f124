"""Outcome of a training run: the prompt, its measurements, and the log of its epochs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from prompt_serve.closed_form.learn import LearnedClasses
from prompt_serve.errors import counted
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.few_shot import shot_faults
from prompt_serve.training.without_torch.evaluation import (
    Scores,
    ZeroShotComparison,
    unknown_threshold,
)


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a run makes beside the learned numbers; as it is, what the papers' protocols make."""

    sketch: bool | None = None  # of the training images; None: with class vectors only
    scores: bool = False  # keep the scores of held-out images in the result


NO_EXTRAS: Final = Extras()


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
    # By part, those that exist: "cross-validation" or "val", then "test".
    comparisons: Mapping[str, ZeroShotComparison]
    history: tuple[EpochRecord, ...]
    images: Mapping[str, int]  # used, by part
    notes: tuple[str, ...]  # for the user
    seconds: Mapping[str, float]  # by stage: "features", "learning", "evaluation"
    trained_numbers: int = 0  # changed by the optimizer; the file may hold fewer
    train_accuracy: float | None = None  # on the plain training images, where they were encoded
    scores: Scores | None = None  # of the last part in ``comparisons``, where ``Extras`` asked


def image_notes(images: Split, shots: int, *, needs_validation: bool) -> tuple[str, ...]:
    """Return what the user should know of the images that were drawn."""
    notes = list(images.notes)
    if images.val is None and needs_validation:
        notes.append("There are no images left to validate on; training runs without validation.")
    alone = all(len(items) == 1 for items in images.train.by_label().values())
    if alone and not needs_validation:
        notes.append(
            "Every class has a single image, so none could be left out to choose or to measure "
            "by. Add images, two or more per class."
        )
    if images.test is None:
        notes.append("There are no test images; the accuracy on new images was not measured.")
    if fewer := shot_faults(images, shots):
        notes.append(
            f"{counted(len(fewer), 'class')} with fewer than {counted(shots, 'training image')}."
        )
    return tuple(notes)


def add_class_vectors(prompt: Prompt, learned: LearnedClasses, unknown_share: float) -> Prompt:
    """Return a prompt with class vectors, and with what cross-validation chose for them.

    Args:
        prompt: of the class names in the template.
        learned: class vectors.
        unknown_share: share of held-out images that may be answered with "unknown".
    """
    chosen = {"shrinkage": learned.shrinkage, "text_weight": round(learned.text_factor, 4)}
    return replace(
        prompt,
        classes=learned.classes,
        temperature=learned.temperature,
        unknown_below=unknown_threshold(learned, unknown_share),
        sketch=learned.sketch,
        unlike_below=learned.unlike_below,
        training={**prompt.training, **chosen},
    )
