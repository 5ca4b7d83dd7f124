"""Choose among class vectors, prompts and zero-shot by cross-validation (``train --method auto``).

Every candidate is learned on the same folds of the training images and scored on the images that
were left out; the chosen one is then learned from all images. Among candidates whose accuracy is
within one standard error of the best, the one with the fewest bytes is taken. The error is that of
the paired difference, image by image: all candidates saw the same images, so what they have in
common cancels out (Breiman et al. 1984, section 3.4.3, for the rule).

Class vectors take a second. A prompt takes minutes on few cores: it is tried if its folds and its
final run fit into the time budget, judged by one epoch, and listed as skipped otherwise.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from prompt_serve.calibration import fit_temperature
from prompt_serve.closed_form.cross_validation import OutOfFold, cross_entropy, cross_validate
from prompt_serve.closed_form.folds import NEVER_HELD_OUT, stratified_folds
from prompt_serve.closed_form.learn import rounded_scores
from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.scoring import class_logits
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import FeatureCache, FeatureSet
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.training.findings import findings
from prompt_serve.training.methods import METHODS
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.training.results import draft_prompt
from prompt_serve.training.selection.by_validation import (
    TOO_LARGE,
    Candidate,
    MethodSelection,
    describe_candidate,
    mark_frontier,
)
from prompt_serve.training.sweep import Job, fit_jobs, learning_rates
from prompt_serve.training.trainer import BestFit, PromptPlan, Trainer
from prompt_serve.types import DoubleArray, IntArray

MAX_BYTES: Final = 16_384
MAX_SECONDS: Final = 60.0
PROMPT_FOLDS: Final = 3  # a prompt takes long to learn
# Widest first: held-out images of the same folder do not show what fewer bits cost on others.
WIDTHS: Final = (4, 2, 1)
# Many random vectors in a codebook: four words of a template are too small a prompt for most tasks.
PROMPTS: Final[tuple[Mapping[str, Any], ...]] = (
    {"method": "qcoop", "bits": 4, "n_ctx": 16, "init": "random"},
)
# A limit of steps, not of epochs: the time does not depend on the number of images.
PROMPT_STEPS: Final[Mapping[str, Any]] = {
    "epochs": 1,
    "min_steps": 600,
    "augmentation": "none",
    "step_unit": "relative",
}


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A candidate with its scores on held-out images."""

    config: TrainConfig
    row: Candidate
    logits: DoubleArray  # (N', C)
    correct: DoubleArray  # (N',) 1.0 where the image is classified correctly


class _Folds:
    """The training images with the folds that all candidates share."""

    def __init__(self, trainer: Trainer, config: TrainConfig, name: str) -> None:
        self.trainer, self.config = trainer, config
        self.plan = trainer.plan_all(config, name)
        self.features = trainer.train_features(self.plan)
        self.text_features = trainer.text_features(self.plan)
        self.folds = stratified_folds(self.features.labels, seed=config.seed)
        self.images = np.flatnonzero(self.folds != NEVER_HELD_OUT)  # (N',)
        if not len(self.images):
            raise ConfigInvalid(
                "Method 'auto' chooses by leaving images out, but every class has a single image. "
                "Name a method, for example --method class-vectors, or add images."
            )

    @property
    def labels(self) -> IntArray:
        """Labels (N',) of the images that are left out in turn."""
        return self.features.labels[self.images]

    def trial(self, config: TrainConfig, logits: DoubleArray, seconds: float) -> _Trial:
        """Measure a candidate by its out-of-fold logits (N', C)."""
        correct = (logits.argmax(axis=1) == self.labels).astype(np.float64)
        temperature = fit_temperature(logits.astype(np.float32), self.labels)
        row = replace(
            describe_candidate(config),
            val_accuracy=float(correct.mean()),
            val_loss=float(cross_entropy(logits / temperature, self.labels).mean()),
            seconds=seconds,
        )
        return _Trial(config=config, row=row, logits=logits, correct=correct)

    def held(self, logits: DoubleArray) -> OutOfFold:
        return OutOfFold(
            logits=logits,
            labels=self.labels,
            images=self.images,
            folds=self.folds[self.images],
        )


def select_by_cross_validation(
    backbone: Backbone,
    dataset: Split,
    config: TrainConfig,
    *,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
    open_vocabulary: bool = False,
    name: str = "task",
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
    on_candidate: Callable[[Candidate], object] = lambda candidate: None,
) -> MethodSelection:
    """Choose a method by cross-validation, and learn it from all training and validation images.

    Args:
        backbone: frozen CLIP.
        dataset: all images; the test part is evaluated once, after the choice.
        config: settings that all methods share; the method and its own settings are ignored.
        max_bytes: limit of the tensors in the file.
        max_seconds: limit of the whole run; prompts that would exceed it are skipped.
        open_vocabulary: leave out class vectors, which take no new class names. The first prompt
            is then tried whatever it takes.
        name: of the prompt, kept in its file.
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        progress: shows progress bars.
        on_candidate: called with each candidate once it has been measured.

    Raises:
        ConfigInvalid: there is one class, or no class has two images; or ``max_bytes`` is negative.
    """
    started = time.monotonic()
    if max_bytes < 0:
        raise ConfigInvalid(f"max_bytes is {max_bytes}; expected 0 or more.")
    if len(dataset.class_names) < 2:
        raise ConfigInvalid(
            f"There is one class only, {dataset.class_names[0]!r}. Add a folder of images that do "
            f"not show it: with one class every answer has probability 1."
        )
    trainer = Trainer(backbone, dataset, cache=cache, workers=workers, progress=progress)
    folds = _Folds(trainer, make_config(config.shared(), method="zero-shot"), name)
    zero_shot = class_logits(
        folds.features.plain[folds.images], folds.text_features, backbone.logit_scale
    )
    trials = [folds.trial(folds.config, zero_shot.astype(np.float64), 0.0)]
    trials[0] = replace(trials[0], row=replace(trials[0].row, size_bytes=0))
    skipped: list[Candidate] = []
    if not open_vocabulary:
        trials += _class_vector_trials(folds, max_bytes, skipped)
    for position, described in enumerate(PROMPTS):
        left = max_seconds - (time.monotonic() - started)
        limit = None if open_vocabulary and position == 0 else left
        trials += _prompt_trials(folds, described, max_bytes, limit, progress, skipped)
    for trial in trials:
        on_candidate(trial.row)
    best = smallest_within_one_standard_error(
        [trial.correct for trial in trials],
        [trial.row.size_bytes or 0 for trial in trials],
        [trial.row.val_loss or 0.0 for trial in trials],
    )
    chosen = trials[best]
    rows = mark_frontier([*skipped, *(replace(t.row, chosen=t is chosen) for t in trials)])
    plan = trainer.plan_all(chosen.config, name)
    learned = _learned(trainer, plan, folds, progress)
    result = trainer.finish(plan, learned, folds.held(chosen.logits))
    about = findings(dataset, result.comparisons, backbone.ref.id, workers=workers)
    note = f"Chosen by cross-validation among {len(trials)} candidates: {chosen.row.label}."
    result = replace(result, notes=(*result.notes, note, *about))
    return MethodSelection(result=result, candidates=rows)


def smallest_within_one_standard_error(
    correct: Sequence[DoubleArray], sizes: Sequence[int], losses: Sequence[float]
) -> int:
    """Return the index of the candidate with the fewest bytes that is as good as the best.

    As good: its accuracy is below the best by at most one standard error of their difference on
    the same images. Equal sizes: the lower cross-entropy.

    Args:
        correct: for each candidate (N,), 1.0 where an image is classified correctly.
        sizes: in bytes.
        losses: cross-entropies.
    """
    best = min(range(len(correct)), key=lambda i: (-correct[i].mean(), losses[i], sizes[i]))
    able = []
    for index, own in enumerate(correct):
        difference = correct[best] - own
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        if difference.mean() <= error:
            able.append(index)
    return min(able, key=lambda i: (sizes[i], losses[i]))


def _class_vector_trials(folds: _Folds, max_bytes: int, skipped: list[Candidate]) -> list[_Trial]:
    """Cross-validate class vectors at the largest width that fits the budget."""
    started = time.monotonic()
    for bits in WIDTHS:
        config = make_config(folds.config.shared(), method="class-vectors", bits=bits)
        plan = replace(folds.plan, config=config)
        size = folds.trainer.draft(plan, folds.trainer.fit([plan])[0]).payload_bytes
        if size <= max_bytes:
            break
        row = replace(describe_candidate(config), size_bytes=size, skipped=TOO_LARGE)
        skipped.append(row)
    else:
        return []
    features, labels = folds.features.plain, folds.features.labels
    n_classes, text_features = len(folds.text_features), folds.text_features
    settings = cross_validate(
        features, labels, n_classes, seed=folds.config.seed, text_features=text_features
    )
    logits = rounded_scores(features, labels, n_classes, settings, bits, text_features)
    trial = folds.trial(config, logits, time.monotonic() - started)
    return [replace(trial, row=replace(trial.row, size_bytes=size))]


def _prompt_trials(
    folds: _Folds,
    described: Mapping[str, Any],
    max_bytes: int,
    max_seconds: float | None,
    progress: Progress,
    skipped: list[Candidate],
) -> list[_Trial]:
    """Learn a prompt on folds, unless it is too large or takes too long."""
    shared = {**folds.config.shared(), "templates": (), **PROMPT_STEPS}
    config = make_config(shared, **described).with_min_steps(len(folds.folds))
    row = describe_candidate(config)
    started = time.monotonic()
    once = _fit(folds, config.replace(epochs=1), [np.arange(len(folds.folds))], SILENT)
    per_epoch = time.monotonic() - started
    size = _draft(folds, config, once[0]).payload_bytes
    needed = per_epoch * config.epochs * (PROMPT_FOLDS + 1)
    if size > max_bytes:
        skipped.append(replace(row, size_bytes=size, skipped=TOO_LARGE))
        return []
    if max_seconds is not None and needed > max_seconds:
        why = f"needs about {needed:.0f} s more (--max-seconds)"
        skipped.append(replace(row, size_bytes=size, skipped=why))
        return []
    parts = folds.folds % PROMPT_FOLDS  # fewer, larger folds of the same draw
    held_out = [np.flatnonzero((parts == p) & (folds.folds >= 0)) for p in range(PROMPT_FOLDS)]
    others = [np.setdiff1d(np.arange(len(parts)), rows) for rows in held_out]
    fits = _fit(folds, config, others, progress)
    logits = np.zeros((len(folds.folds), len(folds.text_features)))
    for rows, best in zip(held_out, fits, strict=True):
        stored = from_bytes(to_bytes(_draft(folds, config, best)))
        classes = class_features_of(stored, folds.trainer.backbone)
        logits[rows] = class_logits(
            folds.features.plain[rows], classes, folds.trainer.backbone.logit_scale
        )
    trial = folds.trial(config, logits[folds.images], time.monotonic() - started)
    return [replace(trial, row=replace(trial.row, size_bytes=size))]


def _fit(
    folds: _Folds, config: TrainConfig, parts: Sequence[IntArray], progress: Progress
) -> list[BestFit]:
    """Fit a prompt on several parts of the training images, as one batch where shapes agree."""
    (rate,) = learning_rates(config, has_val=False)
    jobs = [
        Job(
            config=config,
            learning_rate=rate,
            train=FeatureSet(
                features=folds.features.features[rows], labels=folds.features.labels[rows]
            ),
            val=None,
        )
        for rows in parts
    ]
    trainer = folds.trainer
    fits = fit_jobs(trainer.backbone, trainer.class_names, jobs, progress=progress)
    return [BestFit(config=config, fitted=fitted) for fitted in fits]


def _draft(folds: _Folds, config: TrainConfig, best: BestFit) -> Prompt:
    trainer = folds.trainer
    return draft_prompt(trainer.backbone, trainer.class_names, config, best.fitted, "draft")


def _learned(trainer: Trainer, plan: PromptPlan, folds: _Folds, progress: Progress) -> BestFit:
    """Learn the chosen candidate from all images."""
    if METHODS[plan.config.method].learner is None:
        return trainer.fit([plan])[0]
    return _fit(folds, plan.config, [np.arange(len(folds.folds))], progress)[0]
