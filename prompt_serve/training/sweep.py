"""Fit many runs: learning rates, seeds, methods. Runs of one shape learn as a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.batched_loop import (
    OnBatchedEpoch,
    batching_faults,
    fit_batched,
    shape_of,
)
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import RELATIVE_RATE, RELATIVE_RATES, TrainConfig
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.loop import Fitted, Run, fit
from prompt_serve.training.methods import METHODS
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.training.settings import AUTO
from prompt_serve.training.without_torch.outcome import EpochRecord

# Sequences R C in one pass of the text tower. More are not faster, and each keeps its
# activations for the backward pass: about 3 MB on ViT-B/16.
SEQUENCES_AT_ONCE = 2_048


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to fit."""

    config: TrainConfig
    learning_rate: float
    train: ImageData
    val: ImageData | None
    checkpoint: Path | None = None  # a job with a checkpoint is fitted alone


def learning_rates(config: TrainConfig, *, has_val: bool) -> tuple[float, ...]:
    """Return the learning rates to try: one, or several for "auto".

    Relative rates are the same for all methods; each method has absolute ones of its own.

    Raises:
        ConfigInvalid: "auto" without validation images.
    """
    method = METHODS[config.method]
    relative = config.step_unit == "relative"
    usual = RELATIVE_RATE if relative else method.learning_rate
    if config.learning_rate is None:
        return (usual,)
    if config.learning_rate != AUTO:
        return (float(config.learning_rate),)
    if not has_val:
        raise ConfigInvalid(
            "learning_rate 'auto' chooses by validation images, and there are none. "
            f"Give a number, such as {usual}, or more images."
        )
    return RELATIVE_RATES if relative else method.learning_rates


def augmentations(config: TrainConfig, *, has_val: bool) -> tuple[TrainConfig, ...]:
    """Return the configurations to try: this one, or one per kind of augmentation for "auto".

    Raises:
        ConfigInvalid: "auto" without validation images.
    """
    if config.augmentation != AUTO:
        return (config,)
    if not has_val:
        raise ConfigInvalid(
            "augmentation 'auto' chooses by validation images, and there are none. "
            "Give none, light or crops, or more images."
        )
    return tuple(config.replace(augmentation=kind) for kind in ("none", "light", "crops"))


def selection_key(fitted: Fitted) -> tuple[float, float]:
    """Return a sort key: validation accuracy, then validation loss; best first."""
    last = fitted.history[-1]
    return -(last.val_accuracy or 0.0), last.val_loss or 0.0


def fit_jobs(
    backbone: Backbone,
    class_names: tuple[str, ...],
    jobs: Sequence[Job],
    *,
    batched: bool = True,
    progress: Progress = SILENT,
    on_epoch: OnBatchedEpoch = lambda index, record: None,
) -> list[Fitted]:
    """Fit every job; results in the order of the jobs.

    Args:
        backbone: frozen CLIP.
        class_names: C names, the same for all jobs.
        jobs: runs to fit; none sees another.
        batched: fit text prompts of one shape as a batch (``fit_batched``); otherwise all jobs one
            after the other.
        progress: shows one bar over the epochs of all jobs.
        on_epoch: called with the index of the job and its record, after every epoch.
    """
    fits: dict[int, Fitted] = {}
    epochs = sum(job.config.epochs for job in jobs)
    with progress.bar(_label(jobs), epochs, "epoch") as advance:

        def after_epoch(index: int, record: EpochRecord) -> None:
            advance(1)
            on_epoch(index, record)

        for group in _groups(backbone, class_names, jobs, batched=batched):
            found = _fit_group(backbone, class_names, jobs, group, after_epoch)
            fits |= dict(zip(group, found, strict=True))
    return [fits[index] for index in range(len(jobs))]


def _label(jobs: Sequence[Job]) -> str:
    methods = {job.config.method for job in jobs}
    return f"learning {methods.pop()}" if len(methods) == 1 else f"learning {len(jobs)} prompts"


def _groups(
    backbone: Backbone, class_names: tuple[str, ...], jobs: Sequence[Job], *, batched: bool
) -> list[list[int]]:
    """Return the indices of jobs to fit as a batch; a job that cannot be batched is alone."""
    if not batched or len(jobs) == 1:
        return [[index] for index in range(len(jobs))]
    at_once = max(1, SEQUENCES_AT_ONCE // len(class_names))
    groups: list[list[int]] = []
    by_shape: dict[str, list[int]] = {}
    for index, job in enumerate(jobs):
        run = Run(backbone, class_names, job.config, learning_rate=job.learning_rate)
        if job.checkpoint or batching_faults(run, job.train):
            groups.append([index])
            continue
        shape = repr(shape_of(run, job.train))
        if len(by_shape.get(shape, ())) % at_once == 0:
            by_shape[shape] = []
            groups.append(by_shape[shape])
        by_shape[shape].append(index)
    return groups


def _fit_group(
    backbone: Backbone,
    class_names: tuple[str, ...],
    jobs: Sequence[Job],
    group: Sequence[int],
    after_epoch: Callable[[int, EpochRecord], object],
) -> list[Fitted]:
    if len(group) == 1:
        index, job = group[0], jobs[group[0]]
        fitted = fit(
            backbone,
            class_names,
            job.train,
            job.val,
            job.config,
            learning_rate=job.learning_rate,
            on_epoch=lambda record: after_epoch(index, record),
            checkpoint=job.checkpoint,
        )
        return [fitted]
    batch = [jobs[index] for index in group]
    return fit_batched(
        backbone,
        class_names,
        [_features(job.train) for job in batch],
        [None if job.val is None else _features(job.val) for job in batch],
        [job.config for job in batch],
        [job.learning_rate for job in batch],
        on_epoch=lambda position, record: after_epoch(group[position], record),
    )


def _features(data: ImageData) -> FeatureSet:
    if not isinstance(data, FeatureSet):
        raise TypeError("Runs on pixels cannot be batched.")  # ``_groups`` keeps them apart
    return data
