"""Steps from a dataset to finished prompts: draw, provide features, fit, choose, draft, measure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from prompt_serve.calibration import fit_temperature
from prompt_serve.closed_form.cross_validation import OutOfFold
from prompt_serve.closed_form.learn import LearnedClasses
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.scoring import class_logits
from prompt_serve.training.batched_loop import OnBatchedEpoch
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.feature_provider import FeatureProvider
from prompt_serve.training.data.features import FeatureCache, FeatureSet
from prompt_serve.training.data.few_shot import Sampler, few_shot, shot_faults
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.training.loop import Fitted
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.base import ClosedFormInputs
from prompt_serve.training.progress import SILENT, Progress, StageTimer
from prompt_serve.training.results import draft_prompt, finish_prompt
from prompt_serve.training.select_tokens import (
    TokenCandidate,
    fewest_within_one_standard_error,
    selection_note,
    selects_tokens,
    token_configs,
    tokens_of,
    with_tokens,
)
from prompt_serve.training.settings import AUTO
from prompt_serve.training.sweep import (
    Job,
    augmentations,
    fit_jobs,
    learning_rates,
    selection_key,
)
from prompt_serve.training.without_torch.evaluation import ZeroShotComparison, evaluate
from prompt_serve.training.without_torch.outcome import TrainingResult
from prompt_serve.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """A prompt to learn: its settings and its images."""

    name: str
    config: TrainConfig
    images: Split  # drawn
    checkpoint: Path | None = None
    cross_validated: bool = False  # chosen by folds of the training images; there is no val part

    @property
    def as_pixels(self) -> bool:
        """True where the image tower is prompted, so that its features cannot be cached."""
        return METHODS[self.config.method].prompts_images(self.config.settings)


@dataclass(frozen=True, kw_only=True)
class BestFit:
    """Best run of a prompt, of one or more that were tried."""

    config: TrainConfig  # of the plan, with the selected number of tokens in place of "auto"
    fitted: Fitted | None  # None: the method learns nothing
    seconds: float = 0.0  # of learning, all runs tried
    note: str = ""  # for the user
    classes: LearnedClasses | None = None  # of a method in closed form


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
        if METHODS[config.method].closed_form is not None:
            return self.plan_all(config, name)
        config = config.with_min_steps(len(images.train))
        return PromptPlan(name=name, config=config, images=images, checkpoint=checkpoint)

    def plan_all(self, config: TrainConfig, name: str) -> PromptPlan:
        """Draw the images of a task that is validated on folds, so that none is set aside."""
        images = self._sampler(self._dataset, shots=config.shots, seed=config.seed)
        images = _without_validation(self._dataset, images, config.shots)
        return PromptPlan(name=name, config=config, images=images, cross_validated=True)

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
            return [self._without_steps(plan) for plan in plans]
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
            else self._without_steps(plan)
            for plan, own in zip(plans, jobs, strict=True)
        ]

    def draft(self, plan: PromptPlan, best: BestFit) -> Prompt:
        """Return what was learned as a prompt, without what is measured afterwards."""
        return draft_prompt(
            self.backbone, self.class_names, best.config, best.fitted, plan.name, best.classes
        )

    def features(self, plan: PromptPlan, part: str) -> ImageData:
        """Return plain views of a part that the plan has, as its method reads them."""
        return self._provide(part, plan.images.parts[part], as_pixels=plan.as_pixels)

    def finish(
        self, plan: PromptPlan, best: BestFit, held: OutOfFold | None = None
    ) -> TrainingResult:
        """Calibrate a prompt and measure it on the validation and test images.

        Args:
            plan: the prompt.
            best: its outcome.
            held: scores of held-out training images, where there is no validation part.
        """
        held = best.classes.out_of_fold if best.classes else held
        counts = {part: len(images) for part, images in plan.images.parts.items()}
        held_out = {part: self.features(plan, part) for part in counts if part != "train"}
        with self._timer("evaluation"):
            prompt, comparisons = finish_prompt(
                self.draft(plan, best),
                self.backbone,
                best.config,
                held_out,
                counts,
                held,
                self._cross_validation(plan, held),
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

    def _without_steps(self, plan: PromptPlan) -> BestFit:
        """Learn class vectors in closed form, or nothing."""
        closed_form = METHODS[plan.config.method].closed_form
        if closed_form is None:
            return BestFit(config=plan.config, fitted=None)
        train, text_features = self.train_features(plan), self.text_features(plan)
        with self._timer("learning"):
            classes = closed_form(
                ClosedFormInputs(
                    features=train.plain,
                    labels=train.labels,
                    text_features=text_features,
                    logit_scale=self.backbone.logit_scale,
                    seed=plan.config.seed,
                ),
                plan.config.settings,
            )
        return BestFit(config=plan.config, fitted=None, classes=classes)

    def _cross_validation(
        self, plan: PromptPlan, held: OutOfFold | None
    ) -> ZeroShotComparison | None:
        """Compare out-of-fold scores with the template, on the training images."""
        if held is None:
            return None
        temperature = 1.0  # that of class vectors is in their scores
        if METHODS[plan.config.method].closed_form is None:
            temperature = fit_temperature(held.logits.astype(np.float32), held.labels)
        features = self.train_features(plan).plain[held.images]
        zero_shot = class_logits(features, self.text_features(plan), self.backbone.logit_scale)
        return ZeroShotComparison(
            zero_shot=evaluate(zero_shot, held.labels),
            prompt=evaluate((held.logits / temperature).astype(np.float32), held.labels),
        )

    def train_features(self, plan: PromptPlan) -> FeatureSet:
        """Return the plain views of the training images."""
        images = self._provide("train", plan.images.train, as_pixels=False)
        if not isinstance(images, FeatureSet):
            raise TypeError("Class vectors are learned from features, not from pixels.")
        return images

    def text_features(self, plan: PromptPlan) -> FloatArray:
        """Return the class features (C, E) of the template alone."""
        template = draft_prompt(self.backbone, self.class_names, plan.config, None, plan.name)
        return class_features_of(template, self.backbone)

    def _jobs(self, plan: PromptPlan) -> list[Job]:
        """Return the runs to try: one, unless a setting is "auto"."""
        config, has_val = plan.config, plan.images.val is not None
        if METHODS[config.method].learner is None:
            return []
        variants: Sequence[TrainConfig] = [config]
        if selects_tokens(config):
            variants = token_configs(config, self.backbone, has_val=has_val)
        variants = [tried for one in variants for tried in augmentations(one, has_val=has_val)]
        rates = learning_rates(config, has_val=has_val)
        val = self.features(plan, "val") if has_val else None
        return [
            Job(
                config=variant,
                learning_rate=rate,
                train=self._augmented(plan, variant),
                val=val,
                checkpoint=_checkpoint(plan, variant, rate if len(rates) > 1 else None),
            )
            for variant in variants
            for rate in rates
        ]

    def _augmented(self, plan: PromptPlan, config: TrainConfig) -> ImageData:
        """Return the training images in the views that ``config`` asks for."""
        kind = config.augmentation
        images = plan.images.train
        if kind == "none" or kind == "auto":  # mypy narrows no "in"
            return self._provide("train", images, as_pixels=plan.as_pixels)
        return self._provide(
            "train",
            images,
            as_pixels=plan.as_pixels,
            views=config.views,
            seed=config.seed,
            augmentation=kind,
        )


def _without_validation(dataset: Split, drawn: Split, shots: int) -> Split:
    """Return the images that a method learns from which needs none to validate on.

    With ``shots`` images per class these are the training images that were drawn; else all.
    """
    if shots:
        return replace(drawn, val=None)
    given = (*dataset.train.items, *(dataset.val.items if dataset.val else ()))
    return replace(drawn, train=drawn.train.with_items(given), val=None)


def _checkpoint(plan: PromptPlan, variant: TrainConfig, rate: float | None) -> Path | None:
    """Return the checkpoint file of a run; runs that are tried side by side each have their own."""
    if plan.checkpoint is None:
        return None
    suffix = f".tokens-{tokens_of(variant)}" if selects_tokens(plan.config) else ""
    suffix += f".{variant.augmentation}" if plan.config.augmentation == AUTO else ""
    suffix += "" if rate is None else f".{rate:g}"
    return plan.checkpoint.with_name(f"{plan.checkpoint.name}{suffix}")


def _best(plan: PromptPlan, fits: Sequence[tuple[Job, Fitted]]) -> BestFit:
    """Choose among the runs of a prompt by validation."""
    seconds = sum(record.seconds for _, fitted in fits for record in fitted.history)
    if not selects_tokens(plan.config):
        job, fitted = min(fits, key=lambda tried: selection_key(tried[1]))
        return BestFit(config=job.config, fitted=fitted, seconds=seconds)
    candidates = [
        TokenCandidate(tokens=tokens, fitted=_best_validated(tried))
        for tokens, tried in groupby(fits, key=lambda tried: tokens_of(tried[0].config))
    ]
    chosen = fewest_within_one_standard_error(candidates, len(plan.images.val or ()))
    return BestFit(
        config=with_tokens(plan.config, chosen.tokens),
        fitted=chosen.fitted,
        seconds=seconds,
        note=selection_note(chosen, candidates),
    )


def _best_validated(fits: Iterable[tuple[Job, Fitted]]) -> Fitted:
    return min((fitted for _, fitted in fits), key=selection_key)


def _image_notes(plan: PromptPlan) -> tuple[str, ...]:
    """Return what the user should know of the images."""
    images, shots = plan.images, plan.config.shots
    notes = list(images.notes)
    if images.val is None and not plan.cross_validated:
        notes.append("There are no images left to validate on; training runs without validation.")
    if images.test is None:
        notes.append("There are no test images; the accuracy on new images was not measured.")
    fewer = shot_faults(images, shots)
    if fewer:
        notes.append(f"{len(fewer)} classes have fewer than {shots} training images.")
    return tuple(notes)
