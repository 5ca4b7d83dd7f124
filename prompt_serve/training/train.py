"""Train prompts: one (``train_prompt``), or one per configuration (``train_prompts``)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prompt_serve.prompts.equal_names import equal_names_notes
from prompt_serve.training.batched_loop import OnBatchedEpoch
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.few_shot import Sampler, few_shot, shot_faults
from prompt_serve.training.data.loading import OnBadImage, check_images, read_dataset
from prompt_serve.training.data.tables import USUAL_COLUMNS, ColumnNames
from prompt_serve.training.loop import OnEpoch, check_names
from prompt_serve.training.methods import METHODS
from prompt_serve.training.progress import SILENT, Progress, StageTimer
from prompt_serve.training.trainer import Trainer
from prompt_serve.training.without_torch.outcome import NO_EXTRAS, Extras, TrainingResult


def open_dataset(
    source: str | Path,
    backbone: Backbone,
    config: TrainConfig,
    *,
    images: Path | None = None,
    columns: ColumnNames = USUAL_COLUMNS,
    rename: Mapping[str, str] | None = None,
    on_bad_image: OnBadImage = "error",
    workers: int = 4,
    progress: Progress = SILENT,
) -> Split:
    """Read a dataset and check everything that training with ``config`` requires of it.

    Its notes tell what was ignored or skipped, and which classes have names with the same tokens.

    Raises:
        DatasetInvalid: lists all faults, from empty classes to names that are too long.
    """

    def too_few(split: Split) -> list[str]:
        return [] if config.fewer_shots_ok else shot_faults(split, config.shots)

    def too_long(split: Split) -> list[str]:
        return check_names(backbone, split.class_names, config)

    split = read_dataset(
        source,
        images=images,
        columns=columns,
        rename=rename,
        repairs=(check_images(on_bad_image=on_bad_image, workers=workers, progress=progress),),
        checks=(too_few, too_long),
        workers=workers,
        progress=progress,
    )
    equal = equal_names_notes(split.class_names, backbone.tokenizer)
    return replace(split, notes=(*split.notes, *equal))


def train_prompt(
    backbone: Backbone,
    dataset: Split,
    config: TrainConfig,
    *,
    name: str = "task",
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
    on_epoch: OnEpoch = lambda record: None,
    checkpoint: Path | None = None,
    sampler: Sampler = few_shot,
    extras: Extras = NO_EXTRAS,
) -> TrainingResult:
    """Learn a prompt for ``dataset``.

    The test images are encoded and evaluated once, after learning has ended; they choose nothing.
    The same dataset, backbone and configuration give the same prompt, bit for bit, on the same
    machine.

    Args:
        backbone: frozen CLIP.
        dataset: all images; ``config.shots`` and ``config.seed`` draw the training images.
        config: training settings.
        name: of the prompt, kept in its file.
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        progress: shows progress bars.
        on_epoch: called after every epoch of every run.
        checkpoint: file written after every epoch; an interrupted run resumes from it. Where
            several learning rates or numbers of tokens are tried, each run has its own file
            beside it.
        sampler: draws ``config.shots`` images per class with ``config.seed``.
        extras: what is made beside the learned numbers.
    """
    (result,) = train_prompts(
        backbone,
        dataset,
        [config],
        names=[name],
        cache=cache,
        workers=workers,
        progress=progress,
        on_epoch=lambda index, record: on_epoch(record),
        checkpoints=[checkpoint],
        # A batch sums in another order: a single prompt must not depend on what is tried beside it.
        batched=False,
        sampler=sampler,
        extras=extras,
    )
    return result


def train_prompts(
    backbone: Backbone,
    dataset: Split,
    configs: Sequence[TrainConfig],
    *,
    names: Sequence[str] = (),
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
    on_epoch: OnBatchedEpoch = lambda index, record: None,
    checkpoints: Sequence[Path | None] = (),
    batched: bool = True,
    sampler: Sampler = few_shot,
    extras: Extras = NO_EXTRAS,
) -> list[TrainingResult]:
    """Learn a prompt with each of ``configs``; images are encoded once for all.

    Text prompts of one shape (seeds, ranks, learning rates) learn as a batch (``fit_batched``),
    all others one after the other. No run sees another.

    Args:
        backbone: frozen CLIP.
        dataset: all images; each configuration draws its own.
        configs: training settings, one or more.
        names: of the prompts, as many as ``configs``; without names, all are called "task".
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        progress: shows progress bars.
        on_epoch: called with the index of the configuration and the record of each epoch.
        checkpoints: a file, or None, for each configuration (see ``train_prompt``); runs with a
            checkpoint are not batched.
        batched: False fits all runs one after the other.
        sampler: draws the images of each configuration.
        extras: what is made beside the learned numbers.
    """
    names = names or ["task"] * len(configs)
    checkpoints = checkpoints or [None] * len(configs)
    timer = StageTimer()
    results: dict[int, TrainingResult] = {}
    for indices in _rounds(configs):
        trainer = Trainer(
            backbone,
            dataset,
            cache=cache,
            workers=workers,
            progress=progress,
            timer=timer,
            sampler=sampler,
            extras=extras,
        )
        plans = [trainer.plan(configs[i], names[i], checkpoints[i]) for i in indices]
        fits = trainer.fit(
            plans,
            on_epoch=lambda position, record, indices=indices: on_epoch(indices[position], record),  # type: ignore[misc]  # the default argument binds this round's indices
            batched=batched,
        )
        finished = [trainer.finish(*planned) for planned in zip(plans, fits, strict=True)]
        results |= dict(zip(indices, finished, strict=True))
    return [results[index] for index in range(len(configs))]


def _rounds(configs: Sequence[TrainConfig]) -> list[list[int]]:
    """Return the indices of configurations that are learned together.

    Text prompts share their features and the text tower. An image prompt is alone: its pixels may
    fill a gigabyte, and are freed when its round ends.
    """
    prompts_images = [METHODS[c.method].prompts_images(c.settings) for c in configs]
    text = [index for index, as_pixels in enumerate(prompts_images) if not as_pixels]
    alone = [[index] for index, as_pixels in enumerate(prompts_images) if as_pixels]
    return [text, *alone] if text else alone
