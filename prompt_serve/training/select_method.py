"""Choose a method by a byte budget: learn several candidates that fit, and take the one that
validates best (``prompt-serve train --method auto --max-bytes N``).

Bytes are those of the learned numbers (``Prompt.payload_bytes``); they are known before learning
for all methods but those that prune. Candidates are compared by validation images alone: by
accuracy, then by cross-entropy, then by fewer bytes. The test images are encoded after the choice,
and only the chosen prompt looks at them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from prompt_serve.errors import BackboneUnsupported, ConfigInvalid, PromptTooLong
from prompt_serve.prompts.prompt_file import from_bytes, to_bytes
from prompt_serve.scoring import softmax
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.few_shot import few_shot
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.evaluate import prompt_logits
from prompt_serve.training.loop import Fitted, Run
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.adapt import AdaptSettings
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.training.settings import defaults_of
from prompt_serve.training.sweep import Job, fit_jobs
from prompt_serve.training.train import (
    FeatureProvider,
    StageTimer,
    TrainingResult,
    draft_prompt,
    learning_rates,
    notes_on,
    selection_key,
    training_result,
)

CandidateSet = Literal["text", "all"]
TOO_LARGE = "larger than the budget"

TEXT: tuple[dict[str, Any], ...] = (
    {"method": "zero-shot"},
    *({"method": "qcoop", "bits": bits} for bits in (1, 2, 4, 8)),
    {"method": "dip", "bits": 4},
    {"method": "dip", "rank": 4, "bits": 4},
    *({"method": "dip", "rank": rank} for rank in (1, 2, 4)),
    {"method": "coop"},
    {"method": "kgcoop"},
)
IMAGE: tuple[dict[str, Any], ...] = (
    {"method": "dip", "branch": "image"},
    {"method": "vpt"},
    {"method": "ivlp"},
    *({"method": "adapt", "tokens": tokens} for tokens in (16, 32, 64)),
    {"method": "qmaple"},
    {"method": "maple"},
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One line of the frontier."""

    method: str
    settings: dict[str, Any]  # those of the method that differ from the defaults
    size_bytes: int | None  # of the learned numbers; None: not known, since it was not learned
    val_accuracy: float | None = None  # 0..1; None: not learned
    val_loss: float | None = None  # cross-entropy of the validation images
    learning_rate: float | None = None
    seconds: float = 0.0  # of learning; of runs that learned in one, its share
    skipped: str = ""  # why it was not learned, or may not be chosen
    on_frontier: bool = False  # nothing of as few bytes validates as well
    chosen: bool = False

    @property
    def label(self) -> str:
        """Method and settings, such as "dip rank=2"."""
        return " ".join([self.method, *(f"{name}={v}" for name, v in self.settings.items())])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The prompt that was taken, and all it was compared with, by rising size."""

    result: TrainingResult
    frontier: tuple[Candidate, ...]


@dataclass(kw_only=True)
class _Trial:
    """A candidate on its way."""

    config: TrainConfig
    row: Candidate
    fitted: Fitted | None = field(default=None, repr=False)

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sorts by validation accuracy, cross-entropy and bytes; best first."""
        row = self.row
        return -(row.val_accuracy or 0.0), row.val_loss or 0.0, row.size_bytes or 0


OnCandidate = Callable[[Candidate], object]


def choose_prompt(
    backbone: Backbone,
    dataset: Split,
    config: TrainConfig,
    *,
    max_bytes: int,
    candidates: CandidateSet | Sequence[TrainConfig] = "text",
    one_standard_error: bool = False,
    name: str = "task",
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
    on_candidate: OnCandidate = lambda candidate: None,
) -> Chosen:
    """Learn every candidate whose learned numbers fit into ``max_bytes``, and take the best.

    The same dataset, backbone and settings give the same choice. Zero-shot, 0 bytes, always fits.

    Args:
        backbone: frozen.
        dataset: all images; ``config.shots`` and ``config.seed`` draw those to learn from.
        config: seed, epochs, template and the other settings that all methods share; its method
            and the method's own settings are not looked at. With ``learning_rate = "auto"`` every
            candidate tries its method's rates.
        max_bytes: of the learned numbers; the header of a prompt file comes on top.
        candidates: "text" for prompts of the text tower, "all" for those of the image tower too
            (a vision transformer, and no cached features: far slower), or configurations.
        one_standard_error: take the smallest candidate whose accuracy is within one standard error
            ``sqrt(a (1 - a) / N)`` of the best. A few validation images hardly tell candidates
            apart, and a small prompt has less room to fit noise.
        name: of the prompt.
        cache: of image features; None keeps none on disk.
        workers: threads that decode images.
        progress: where bars are shown.
        on_candidate: called with each candidate once it has been measured.

    Raises:
        ConfigInvalid: there are no validation images to choose by, or ``max_bytes`` is negative.
    """
    if max_bytes < 0:
        raise ConfigInvalid(f"max_bytes is {max_bytes}; wanted 0 or more.")
    drawn = few_shot(dataset, shots=config.shots, seed=config.seed)
    if drawn.val is None:
        raise ConfigInvalid(
            "Method 'auto' chooses by validation images, and there are none. "
            "Name a method, such as 'dip', or give more images."
        )
    clock = StageTimer()
    prepare = FeatureProvider(backbone, clock, cache=cache, workers=workers, progress=progress)
    trials = [_Trial(config=c, row=_row(c)) for c in candidate_configs(config, candidates)]
    for trial in trials:
        trial.row = _sized(trial, backbone, dataset.class_names, max_bytes)
    with clock("learning"):
        _learn(trials, backbone, dataset.class_names, drawn, prepare, progress)
    for trial in trials:
        if trial.row.skipped:
            continue
        val = prepare("val", drawn.val, trial.config)
        trial.row = _measured(trial, backbone, dataset.class_names, val, max_bytes)
        on_candidate(trial.row)
    best = _best(trials, len(drawn.val), one_standard_error=one_standard_error)
    best.row = replace(best.row, chosen=True)
    rows = mark_frontier([trial.row for trial in trials])
    draft = draft_prompt(backbone, dataset.class_names, best.config, best.fitted, name)
    result = training_result(
        backbone,
        draft,
        best.config,
        best.fitted,
        drawn,
        prepare.held_out(drawn, best.config),
        (*notes_on(drawn, best.config), *_notes(rows, best.row, max_bytes)),
        clock,
    )
    return Chosen(result=result, frontier=rows)


def candidate_configs(
    config: TrainConfig, candidates: CandidateSet | Sequence[TrainConfig] = "text"
) -> list[TrainConfig]:
    """The configurations to try; zero-shot is always among them."""
    if not isinstance(candidates, str):
        found = list(candidates)
        if all(METHODS[c.method].learner for c in found):
            found.insert(0, make_config(config.shared(), method="zero-shot"))
        return found
    described = TEXT if candidates == "text" else (*TEXT, *IMAGE)
    return [
        make_config(config.shared(), **own)
        if own["method"] == "zero-shot"
        else make_config(config.shared(), **{"templates": (), **own})
        for own in described
        if own["method"] in METHODS
    ]


def mark_frontier(rows: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """By rising size; ``on_frontier`` where no other of as few bytes validates as well (of equals
    the first)."""
    ordered = sorted(
        rows,
        key=lambda row: (
            math.inf if row.size_bytes is None else row.size_bytes,
            -(row.val_accuracy or 0.0),
            row.val_loss or 0.0,
        ),
    )
    marked, best = [], -1.0
    for row in ordered:
        leads = not row.skipped and row.val_accuracy is not None and row.val_accuracy > best
        if leads and row.val_accuracy is not None:
            best = row.val_accuracy
        marked.append(replace(row, on_frontier=leads))
    return tuple(marked)


def _row(config: TrainConfig) -> Candidate:
    defaults = defaults_of(type(config.settings))
    own = {
        name: value
        for name, value in sorted(config.own().items())
        if (value != defaults[name] or name in ("rank", "bits", "tokens")) and value is not None
    }
    return Candidate(method=config.method, settings=own, size_bytes=None)


def _sized(
    trial: _Trial, backbone: Backbone, class_names: tuple[str, ...], max_bytes: int
) -> Candidate:
    """The candidate with its bytes, or with the reason why it is not learned."""
    config, row = trial.config, trial.row
    if METHODS[config.method].learner is None:
        return replace(row, size_bytes=0)
    try:
        run = Run(backbone, class_names, config, learning_rate=1.0)
        draft = draft_prompt(backbone, class_names, config, run.fitted(()), "size")
    except (ConfigInvalid, BackboneUnsupported, PromptTooLong) as error:
        return replace(row, skipped=error.message)
    if isinstance(config.settings, AdaptSettings):
        return row  # pruned while learning: its size shows afterwards
    too_large = draft.payload_bytes > max_bytes
    return replace(row, size_bytes=draft.payload_bytes, skipped=TOO_LARGE if too_large else "")


def _learn(
    trials: Sequence[_Trial],
    backbone: Backbone,
    class_names: tuple[str, ...],
    drawn: Split,
    prepare: FeatureProvider,
    progress: Progress,
) -> None:
    """Give each trial that learns its best fit."""
    jobs: list[Job] = []
    owners: list[_Trial] = []
    for trial in trials:
        config = trial.config
        if trial.row.skipped or METHODS[config.method].learner is None or drawn.val is None:
            continue
        train = prepare("train", drawn.train, config, config.views)
        val = prepare("val", drawn.val, config)
        for rate in learning_rates(config, val):
            jobs.append(Job(config=config, learning_rate=rate, train=train, val=val))
            owners.append(trial)
    for trial, fitted in zip(
        owners, fit_jobs(backbone, class_names, jobs, progress=progress), strict=True
    ):
        seconds = trial.row.seconds + sum(record.seconds for record in fitted.history)
        trial.row = replace(trial.row, seconds=seconds)
        if trial.fitted is None or selection_key(fitted) < selection_key(trial.fitted):
            trial.fitted = fitted


def _measured(
    trial: _Trial,
    backbone: Backbone,
    class_names: tuple[str, ...],
    val: ImageData,
    max_bytes: int,
) -> Candidate:
    """Score what the prompt file would hold on the validation images."""
    draft = draft_prompt(backbone, class_names, trial.config, trial.fitted, "draft")
    stored = from_bytes(to_bytes(draft))
    logits = prompt_logits(stored, backbone, val)
    own = softmax(logits)[np.arange(len(val)), val.labels].astype(np.float64)
    too_large = stored.payload_bytes > max_bytes
    return replace(
        trial.row,
        size_bytes=stored.payload_bytes,
        val_accuracy=float((logits.argmax(axis=1) == val.labels).mean()),
        val_loss=float(-np.log(own.clip(1e-30)).mean()),
        learning_rate=trial.fitted.learning_rate if trial.fitted else None,
        skipped=TOO_LARGE if too_large else "",
    )


def _best(trials: Sequence[_Trial], images: int, *, one_standard_error: bool) -> _Trial:
    able = sorted((t for t in trials if not t.row.skipped), key=lambda trial: trial.rank)
    accuracy = able[0].row.val_accuracy or 0.0
    if not one_standard_error:
        return able[0]
    least = accuracy - math.sqrt(accuracy * (1.0 - accuracy) / images)
    near = [trial for trial in able if (trial.row.val_accuracy or 0.0) >= least]
    return min(near, key=lambda trial: (trial.row.size_bytes or 0, trial.rank))


def _notes(rows: Sequence[Candidate], best: Candidate, max_bytes: int) -> tuple[str, ...]:
    learned = [row for row in rows if not row.skipped and row.method != "zero-shot"]
    sizes = [row.size_bytes for row in rows if row.size_bytes]
    if not learned:
        smallest = f"; the smallest candidate takes {min(sizes):,}" if sizes else ""
        return (
            f"No learned prompt fits into {max_bytes:,} bytes{smallest}. "
            f"This is the template as it is (zero-shot).",
        )
    if best.method == "zero-shot":
        return ("No learned candidate validates better than the template: zero-shot was chosen.",)
    return (f"Chosen by validation among {len(learned) + 1} candidates: {best.label}.",)
