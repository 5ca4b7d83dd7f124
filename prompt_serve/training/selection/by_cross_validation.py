"""Choose among class vectors, prompts and zero-shot by cross-validation (``train --method auto``).

Every candidate is learned on the same folds of the training images and scored on the images that
were left out; the chosen one is then learned from all images. Among candidates whose accuracy is
within one standard error of the best, the one with the fewest bytes is taken. The error is that of
the paired difference, image by image: all candidates saw the same images, so what they have in
common cancels out (Breiman et al. 1984, section 3.4.3, for the rule).

Class vectors take a second. A prompt takes minutes on few cores: it is tried if its folds and its
final run fit into the time budget, judged by a few steps, and listed as skipped otherwise.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from prompt_serve.calibration import fit_temperature
from prompt_serve.closed_form.cross_validation import OutOfFold, cross_entropy
from prompt_serve.closed_form.folds import NEVER_HELD_OUT, stratified_folds
from prompt_serve.closed_form.learn import first_that_fits, stored_bytes
from prompt_serve.errors import ConfigInvalid, counted
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.scoring import class_logits
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import FeatureCache, FeatureSet
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.training.methods import METHODS
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.training.selection.by_validation import (
    TOO_LARGE,
    Candidate,
    MethodSelection,
    describe_candidate,
    mark_frontier,
)
from prompt_serve.training.sweep import Job, fit_jobs, learning_rates
from prompt_serve.training.trainer import BestFit, Trainer
from prompt_serve.training.without_torch.outcome import NO_EXTRAS, Extras
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
# Steps that a prompt's time is judged by: many enough that what comes before them hardly counts.
JUDGED_STEPS: Final = 50
# A limit of steps, not of epochs: the time does not depend on the number of images.
PROMPT_STEPS: Final[Mapping[str, Any]] = {
    "epochs": 1,
    "min_steps": 600,
    "augmentation": "none",
    "step_unit": "relative",
    "learning_rate": None,  # the default: there are no validation images to choose one by
}


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A candidate with its scores on held-out images."""

    config: TrainConfig
    row: Candidate
    logits: DoubleArray  # (N', C)
    correct: DoubleArray  # (N',) 1.0 where the image is classified correctly
    final: BestFit | None = None  # of all images, where it was learned from them already


class _Folds:
    """The training images with the folds that all candidates share."""

    def __init__(self, trainer: Trainer, config: TrainConfig, name: str) -> None:
        self.trainer, self.config = trainer, config
        self.plan = trainer.plan_all(config, name)
        self.features = trainer.train_features(self.plan)
        self.text_features = trainer.text_features(self.plan)
        self.folds = stratified_folds(self.features.labels, seed=config.seed)
        self.images = np.flatnonzero(self.folds != NEVER_HELD_OUT)  # (N',)

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
    extras: Extras = NO_EXTRAS,
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
        extras: what is made beside the learned numbers; a sketch counts for ``max_bytes``.

    Raises:
        ConfigInvalid: there is one class, or ``max_bytes`` is negative; or a prompt is requested,
            and no class has two images.
    """
    started = time.monotonic()
    if max_bytes < 0:
        raise ConfigInvalid(f"max_bytes is {max_bytes}; expected 0 or more.")
    if len(dataset.class_names) < 2:
        raise ConfigInvalid(
            f"There is one class only, {dataset.class_names[0]!r}. Add a folder of images that do "
            f"not show it: with one class every answer has probability 1."
        )
    trainer = Trainer(
        backbone, dataset, cache=cache, workers=workers, progress=progress, extras=extras
    )
    folds = _Folds(trainer, make_config(config.shared(), method="zero-shot"), name)
    keeps_sketch = extras.sketch is not False
    if not len(folds.images):
        if open_vocabulary:
            raise ConfigInvalid(
                "Prompts are chosen by leaving images out, but every class has a single image. "
                "Name a method, for example --method qcoop, or add images."
            )
        return _without_choice(folds, max_bytes, keeps_sketch=keeps_sketch)
    zero_shot = class_logits(
        folds.features.plain[folds.images], folds.text_features, backbone.logit_scale
    )
    trials = [folds.trial(folds.config, zero_shot.astype(np.float64), 0.0)]
    trials[0] = replace(trials[0], row=replace(trials[0].row, size_bytes=0))
    skipped: list[Candidate] = []
    if not open_vocabulary:
        trials += _class_vector_trials(folds, max_bytes, skipped, keeps_sketch=keeps_sketch)
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
    result = trainer.finish(plan, _learned(chosen, folds, progress), folds.held(chosen.logits))
    note = (
        f"Chosen by cross-validation among {counted(len(trials), 'candidate')}: {chosen.row.label}."
    )
    result = replace(result, notes=(*result.notes, note))
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


def _without_choice(folds: _Folds, max_bytes: int, *, keeps_sketch: bool) -> MethodSelection:
    """Learn class means where no image can be left out to choose by."""
    shape = folds.text_features.shape
    bits = first_that_fits(WIDTHS, shape, max_bytes, sketch=keeps_sketch)
    if bits is None:
        config = folds.config
        note = f"No class vectors fit into {max_bytes:,} bytes: the result is zero-shot."
    else:
        config = make_config(folds.config.shared(), method="class-vectors", bits=bits)
        note = "The result is the mean image features of each class (class-vectors)."
    plan = replace(folds.plan, config=config)
    result = folds.trainer.finish(plan, folds.trainer.fit([plan])[0])
    size = result.prompt.payload_bytes
    row = replace(describe_candidate(config), size_bytes=size, chosen=True)
    result = replace(result, notes=(*result.notes, note))
    return MethodSelection(result=result, candidates=(row,))


def _class_vector_trials(
    folds: _Folds, max_bytes: int, skipped: list[Candidate], *, keeps_sketch: bool
) -> list[_Trial]:
    """Cross-validate class vectors at the largest width that fits the budget."""
    started = time.monotonic()
    for bits in WIDTHS:
        config = make_config(folds.config.shared(), method="class-vectors", bits=bits)
        size = stored_bytes(folds.text_features.shape, bits, sketch=keeps_sketch)
        if size > max_bytes:
            row = replace(describe_candidate(config), size_bytes=size, skipped=TOO_LARGE)
            skipped.append(row)
            continue
        final = folds.trainer.fit([replace(folds.plan, config=config)])[0]
        if final.classes is None or final.classes.out_of_fold is None:
            raise TypeError("Class vectors of images that can be left out have their scores.")
        logits = final.classes.out_of_fold.logits
        trial = folds.trial(config, logits, time.monotonic() - started)
        return [replace(trial, row=replace(trial.row, size_bytes=size), final=final)]
    return []


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
    n_images = len(folds.folds)
    short = config.replace(epochs=1, min_steps=JUDGED_STEPS).with_min_steps(n_images)
    once = _fit(folds, short, [np.arange(n_images)], SILENT)
    per_epoch = (time.monotonic() - started) / short.epochs
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
    return folds.trainer.draft(replace(folds.plan, config=config), best)


def _learned(chosen: _Trial, folds: _Folds, progress: Progress) -> BestFit:
    """Learn the chosen candidate from all images, unless it was learned from them already."""
    if chosen.final is not None:
        return chosen.final
    if METHODS[chosen.config.method].learner is None:
        return BestFit(config=chosen.config, fitted=None)
    return _fit(folds, chosen.config, [np.arange(len(folds.folds))], progress)[0]
