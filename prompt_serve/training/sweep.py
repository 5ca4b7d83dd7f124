"""Several prompts from one dataset: images are prepared once, runs of one shape learn in one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prompt_serve.training.batched_loop import (
    OnBatchedEpoch,
    batching_faults,
    fit_batched,
    shape_of,
)
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import FeatureCache, FeatureSet
from prompt_serve.training.data.few_shot import Sampler, few_shot
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.loop import EpochRecord, Fitted, Run, fit
from prompt_serve.training.methods import METHODS
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.training.train import (
    FeatureProvider,
    StageTimer,
    TrainingResult,
    draft_prompt,
    learning_rates,
    notes_on,
    selection_key,
    train_prompt,
    training_result,
)

# Sequences R C in one pass of the text tower. More bring no speed, and every one keeps its
# activations for the backward pass: some 3 MB on ViT-B/16.
SEQUENCES_AT_ONCE = 2_048


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to learn."""

    config: TrainConfig
    learning_rate: float
    train: ImageData
    val: ImageData | None


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
    draw: Sampler = few_shot,
) -> list[TrainingResult]:
    """Learn a prompt with each of ``configs``; see ``train_prompt`` for one.

    Prompts of the text tower that agree in shape (seeds, ranks, learning rates) learn in one run
    (``fit_batched``); the others one after the other. No run knows of the others.

    Args:
        backbone: frozen.
        dataset: all images; each configuration draws its own.
        configs: how, one or more.
        names: of the prompts, as many as ``configs``; none: all are called "task".
        cache: of image features; None keeps none on disk.
        workers: threads that decode images.
        progress: where bars are shown.
        on_epoch: called with the number of the configuration and the record of each epoch.
        draw: draws the images of each configuration.
    """
    names = names or ["task"] * len(configs)
    together = [index for index, config in enumerate(configs) if _learns_text_only(config)]
    clock = StageTimer()
    prepare = FeatureProvider(backbone, clock, cache=cache, workers=workers, progress=progress)
    learned = _train_together(
        backbone,
        dataset,
        [configs[index] for index in together],
        [names[index] for index in together],
        prepare,
        clock,
        progress,
        lambda position, record: on_epoch(together[position], record),
        draw,
    )
    results = dict(zip(together, learned, strict=True))
    for index, config in enumerate(configs):
        if index not in results:
            results[index] = train_prompt(
                backbone,
                dataset,
                config,
                name=names[index],
                cache=cache,
                workers=workers,
                progress=progress,
                on_epoch=lambda record, index=index: on_epoch(index, record),  # type: ignore[misc]  # the default argument binds this turn's index
                draw=draw,
            )
    return [results[index] for index in range(len(configs))]


def _learns_text_only(config: TrainConfig) -> bool:
    method = METHODS[config.method]
    return method.learner is not None and not method.prompts_images(config.settings)


def _train_together(
    backbone: Backbone,
    dataset: Split,
    configs: Sequence[TrainConfig],
    names: Sequence[str],
    prepare: FeatureProvider,
    clock: StageTimer,
    progress: Progress,
    on_epoch: OnBatchedEpoch,
    draw: Sampler,
) -> list[TrainingResult]:
    drawn = [draw(dataset, shots=c.shots, seed=c.seed) for c in configs]
    held_out = [prepare.held_out(own, c) for own, c in zip(drawn, configs, strict=True)]
    owners: list[int] = []  # of each job, the configuration
    jobs: list[Job] = []
    for index, config in enumerate(configs):
        train = prepare("train", drawn[index].train, config, config.views)
        val = held_out[index].get("val")
        for rate in learning_rates(config, val):
            jobs.append(Job(config=config, learning_rate=rate, train=train, val=val))
            owners.append(index)
    with clock("learning"):
        fits = fit_jobs(
            backbone,
            dataset.class_names,
            jobs,
            progress=progress,
            on_epoch=lambda job, record: on_epoch(owners[job], record),
        )
    results = []
    for index, config in enumerate(configs):
        own = [fitted for owner, fitted in zip(owners, fits, strict=True) if owner == index]
        fitted = min(own, key=selection_key)
        results.append(
            training_result(
                backbone,
                draft_prompt(backbone, dataset.class_names, config, fitted, names[index]),
                config,
                fitted,
                drawn[index],
                held_out[index],
                notes_on(drawn[index], config),
                clock,
            )
        )
    return results


def fit_jobs(
    backbone: Backbone,
    class_names: tuple[str, ...],
    jobs: Sequence[Job],
    *,
    progress: Progress = SILENT,
    on_epoch: OnBatchedEpoch = lambda index, record: None,
) -> list[Fitted]:
    """Learn every job, those of one shape in one run; results in the order of the jobs."""
    fits: dict[int, Fitted] = {}
    epochs = sum(job.config.epochs for job in jobs)
    with progress.bar(f"learning {len(jobs)} prompts", epochs, "epoch") as advance:

        def after(index: int) -> Callable[[EpochRecord], object]:
            def told(record: EpochRecord) -> None:
                advance(1)
                on_epoch(index, record)

            return told

        for group in groups(backbone, class_names, jobs):
            tell = {index: after(index) for index in group}
            fits |= dict(
                zip(group, _fit_group(backbone, class_names, jobs, group, tell), strict=True)
            )
    return [fits[index] for index in range(len(jobs))]


def groups(
    backbone: Backbone, class_names: tuple[str, ...], jobs: Sequence[Job]
) -> list[list[int]]:
    """Numbers of jobs that can learn in one run; a job that cannot is alone."""
    at_once = max(1, SEQUENCES_AT_ONCE // len(class_names))
    found: list[list[int]] = []
    by_shape: dict[str, list[int]] = {}
    for index, job in enumerate(jobs):
        run = Run(backbone, class_names, job.config, learning_rate=job.learning_rate)
        if batching_faults(run, job.train):
            found.append([index])
            continue
        shape = repr(shape_of(run, job.train))
        if len(by_shape.get(shape, ())) % at_once == 0:
            by_shape[shape] = []
            found.append(by_shape[shape])
        by_shape[shape].append(index)
    return found


def _fit_group(
    backbone: Backbone,
    class_names: tuple[str, ...],
    jobs: Sequence[Job],
    group: Sequence[int],
    tell: dict[int, Callable[[EpochRecord], object]],
) -> list[Fitted]:
    chosen = [jobs[index] for index in group]
    trains = [job.train for job in chosen if isinstance(job.train, FeatureSet)]
    vals = [job.val for job in chosen if job.val is None or isinstance(job.val, FeatureSet)]
    if len(group) == 1 or not len(trains) == len(vals) == len(chosen):
        return [
            fit(
                backbone,
                class_names,
                job.train,
                job.val,
                job.config,
                learning_rate=job.learning_rate,
                on_epoch=tell[index],
            )
            for index, job in zip(group, chosen, strict=True)
        ]
    return fit_batched(
        backbone,
        class_names,
        trains,
        vals,
        [job.config for job in chosen],
        [job.learning_rate for job in chosen],
        on_epoch=lambda position, record: tell[group[position]](record),
    )
