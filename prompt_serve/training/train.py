"""From a dataset to prompts: draw images, provide features, fit, choose, draft, measure.

``train_prompts`` learns one prompt per configuration, ``train_prompt`` a single one. Both, and
``select_method``, take the same steps, those of ``Trainer``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.training.batched_loop import OnBatchedEpoch
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.feature_provider import FeatureProvider
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.few_shot import Sampler, few_shot, shot_faults
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.data.loading import read_dataset, unreadable_images
from prompt_serve.training.loop import EpochRecord, Fitted, check_names
from prompt_serve.training.methods import METHODS
from prompt_serve.training.progress import SILENT, Progress, StageTimer
from prompt_serve.training.results import TrainingResult, draft_prompt, finish_prompt
from prompt_serve.training.select_tokens import (
    TokenCandidate,
    fewest_within_one_standard_error,
    selection_note,
    selects_tokens,
    token_configs,
    tokens_of,
)
from prompt_serve.training.sweep import Job, fit_jobs, learning_rates, selection_key

OnEpoch = Callable[[EpochRecord], object]


def open_dataset(
    source: Path,
    backbone: Backbone,
    config: TrainConfig,
    *,
    images: Path | None = None,
    rename: Mapping[str, str] | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
) -> Split:
    """Read a dataset and check everything that training with ``config`` requires of it.

    Raises:
        DatasetInvalid: lists all faults, from empty classes to names that are too long.
    """

    def too_few(split: Split) -> list[str]:
        return [] if config.fewer_shots_ok else shot_faults(split, config.shots)

    def too_long(split: Split) -> list[str]:
        return check_names(backbone, split.class_names, config)

    unreadable = unreadable_images(workers=workers, progress=progress)
    return read_dataset(
        source, images=images, rename=rename, checks=(too_few, too_long, unreadable)
    )


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


@dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """A prompt to learn: its settings and its images."""

    name: str
    config: TrainConfig
    images: Split  # drawn
    checkpoint: Path | None = None

    @property
    def as_pixels(self) -> bool:
        """True where the image tower is prompted, so that its features cannot be cached."""
        return METHODS[self.config.method].prompts_images(self.config.settings)


@dataclass(frozen=True, kw_only=True)
class BestFit:
    """The run that was kept for a prompt, of one or more that were tried."""

    config: TrainConfig  # of the plan, "auto" replaced by the number of tokens that was chosen
    fitted: Fitted | None  # None: the method learns nothing
    seconds: float = 0.0  # of learning, all runs tried
    note: str = ""  # for the user


class Trainer:
    """The steps from a dataset to finished prompts; each image set is encoded once.

    Args:
        backbone: frozen CLIP.
        dataset: all images.
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        progress: shows progress bars.
        timer: adds up the seconds per stage; a new one where None.
        sampler: draws images from ``dataset``.
    """

    def __init__(
        self,
        backbone: Backbone,
        dataset: Split,
        *,
        cache: FeatureCache | None = None,
        workers: int = 4,
        progress: Progress = SILENT,
        timer: StageTimer | None = None,
        sampler: Sampler = few_shot,
    ) -> None:
        self.backbone, self.class_names = backbone, dataset.class_names
        self._dataset, self._sampler, self._progress = dataset, sampler, progress
        self._timer = timer or StageTimer()
        self._provide = FeatureProvider(
            backbone, self._timer, cache=cache, workers=workers, progress=progress
        )

    def plan(self, config: TrainConfig, name: str, checkpoint: Path | None = None) -> PromptPlan:
        """Draw the images of a prompt."""
        images = self._sampler(self._dataset, shots=config.shots, seed=config.seed)
        return PromptPlan(name=name, config=config, images=images, checkpoint=checkpoint)

    def fit(
        self,
        plans: Sequence[PromptPlan],
        *,
        on_epoch: OnBatchedEpoch = lambda index, record: None,
        batched: bool = True,
    ) -> list[BestFit]:
        """Learn the prompts and keep the best run of each, by validation images.

        Args:
            plans: prompts to learn.
            on_epoch: called with the index of the plan and the record of each epoch.
            batched: fit text prompts of one shape as a batch.
        """
        jobs = [self._jobs(plan) for plan in plans]
        owners = [index for index, own in enumerate(jobs) for _ in own]
        if not owners:
            return [BestFit(config=plan.config, fitted=None) for plan in plans]
        with self._timer("learning"):
            fits = fit_jobs(
                self.backbone,
                self.class_names,
                [job for own in jobs for job in own],
                batched=batched,
                progress=self._progress,
                on_epoch=lambda job, record: on_epoch(owners[job], record),
            )
        remaining = iter(fits)
        return [
            _best(plan, [(job, next(remaining)) for job in own])
            if own
            else BestFit(config=plan.config, fitted=None)
            for plan, own in zip(plans, jobs, strict=True)
        ]

    def draft(self, plan: PromptPlan, best: BestFit) -> Prompt:
        """Return what was learned as a prompt, without what is measured afterwards."""
        return draft_prompt(self.backbone, self.class_names, best.config, best.fitted, plan.name)

    def features(self, plan: PromptPlan, part: str) -> ImageData:
        """Return plain views of a part that the plan has, as its method reads them."""
        return self._provide(part, plan.images.parts[part], as_pixels=plan.as_pixels)

    def finish(self, plan: PromptPlan, best: BestFit) -> TrainingResult:
        """Calibrate a prompt and measure it on the validation and test images."""
        counts = {part: len(images) for part, images in plan.images.parts.items()}
        held_out = {part: self.features(plan, part) for part in counts if part != "train"}
        with self._timer("evaluation"):
            prompt, comparisons = finish_prompt(
                self.draft(plan, best),
                self.backbone,
                best.config,
                held_out,
                counts,
            )
        return TrainingResult(
            prompt=prompt,
            comparisons=comparisons,
            history=best.fitted.history if best.fitted else (),
            images=counts,
            notes=(*_image_notes(plan), *([best.note] if best.note else [])),
            seconds=self._timer.seconds,
            trained_numbers=best.fitted.trained_numbers if best.fitted else 0,
        )

    def _jobs(self, plan: PromptPlan) -> list[Job]:
        """Return the runs to try: one, unless a setting is "auto"."""
        config, has_val = plan.config, plan.images.val is not None
        if METHODS[config.method].learner is None:
            return []
        variants: Sequence[TrainConfig] = [config]
        if selects_tokens(config):
            variants = token_configs(config, self.backbone, has_val=has_val)
        rates = learning_rates(config, has_val=has_val)
        train = self._provide(
            "train",
            plan.images.train,
            as_pixels=plan.as_pixels,
            views=config.views,
            seed=config.seed,
        )
        val = self.features(plan, "val") if has_val else None
        return [
            Job(
                config=variant,
                learning_rate=rate,
                train=train,
                val=val,
                checkpoint=_checkpoint(plan, variant, rate if len(rates) > 1 else None),
            )
            for variant in variants
            for rate in rates
        ]


def _checkpoint(plan: PromptPlan, variant: TrainConfig, rate: float | None) -> Path | None:
    """Return the checkpoint file of a run; runs that are tried side by side each have their own."""
    if plan.checkpoint is None:
        return None
    tokens = f".tokens-{tokens_of(variant)}" if selects_tokens(plan.config) else ""
    suffix = tokens if rate is None else f"{tokens}.{rate:g}"
    return plan.checkpoint.with_name(f"{plan.checkpoint.name}{suffix}")


def _best(plan: PromptPlan, fits: Sequence[tuple[Job, Fitted]]) -> BestFit:
    """Choose among the runs of a prompt by validation."""
    seconds = sum(record.seconds for _, fitted in fits for record in fitted.history)
    if not selects_tokens(plan.config):
        return BestFit(config=plan.config, fitted=_best_validated(fits), seconds=seconds)
    candidates = [
        TokenCandidate(tokens=tokens, fitted=_best_validated(tried))
        for tokens, tried in groupby(fits, key=lambda tried: tokens_of(tried[0].config))
    ]
    chosen = fewest_within_one_standard_error(candidates, len(plan.images.val or ()))
    return BestFit(
        config=plan.config.replace(tokens=chosen.tokens),
        fitted=chosen.fitted,
        seconds=seconds,
        note=selection_note(chosen, candidates),
    )


def _best_validated(fits: Iterable[tuple[Job, Fitted]]) -> Fitted:
    return min((fitted for _, fitted in fits), key=selection_key)


def _image_notes(plan: PromptPlan) -> tuple[str, ...]:
    """Return what the user should know of the images."""
    images, shots = plan.images, plan.config.shots
    notes = []
    if images.val is None:
        notes.append("There are no images left to validate on; training runs without validation.")
    if images.test is None:
        notes.append("There are no test images; the accuracy on new images was not measured.")
    fewer = shot_faults(images, shots)
    if fewer:
        notes.append(f"{len(fewer)} classes have fewer than {shots} training images.")
    return tuple(notes)
