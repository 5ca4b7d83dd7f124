"""Select a method by a byte budget: learn the candidates that fit, keep the one that validates best
(``prompt-serve train --method auto --max-bytes N``).

Bytes are those of the learned numbers (``Prompt.payload_bytes``); they are known before learning
for all methods except those that prune. Candidates are compared by validation images alone: by
accuracy, then by cross-entropy, then by size. Test images are encoded after the selection, and
only the selected prompt is evaluated on them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from prompt_serve.errors import BackboneUnsupported, ConfigInvalid, PromptTooLong
from prompt_serve.prompts.prompt_file import from_bytes, to_bytes
from prompt_serve.scoring import softmax
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.evaluate import prompt_logits
from prompt_serve.training.loop import Run
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.adapt import AdaptSettings
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.training.settings import defaults_of
from prompt_serve.training.trainer import BestFit, PromptPlan, Trainer
from prompt_serve.training.without_torch.outcome import NO_EXTRAS, Extras, TrainingResult

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
    """A configuration that was considered, with its size and its validation accuracy."""

    method: str
    settings: dict[str, Any]  # of the method, those that differ from the defaults
    size_bytes: int | None  # of the learned numbers; None: unknown, since it was not learned
    val_accuracy: float | None = None  # 0..1; None: not learned
    val_loss: float | None = None  # cross-entropy of the validation images
    learning_rate: float | None = None
    seconds: float = 0.0  # of learning; of a batch of runs, its share
    skipped: str = ""  # reason why it was not learned, or cannot be selected
    on_frontier: bool = False  # no candidate of as few bytes validates as well
    chosen: bool = False

    @property
    def label(self) -> str:
        """Method and settings, such as "dip rank=2"."""
        return " ".join([self.method, *(f"{name}={v}" for name, v in self.settings.items())])

    @property
    def selection_key(self) -> tuple[float, float, int]:
        """Sort key: validation accuracy, cross-entropy and bytes; best first."""
        return -(self.val_accuracy or 0.0), self.val_loss or 0.0, self.size_bytes or 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class MethodSelection:
    """The selected prompt, and all candidates by size."""

    result: TrainingResult
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A candidate that was learned and measured."""

    plan: PromptPlan
    fit: BestFit
    row: Candidate


OnCandidate = Callable[[Candidate], object]


def select_method(
    backbone: Backbone,
    dataset: Split,
    config: TrainConfig,
    *,
    max_bytes: int,
    candidates: CandidateSet | Sequence[TrainConfig] = "text",
    name: str = "task",
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
    on_candidate: OnCandidate = lambda candidate: None,
    extras: Extras = NO_EXTRAS,
) -> MethodSelection:
    """Learn every candidate whose learned numbers fit into ``max_bytes``, and select the best.

    The same dataset, backbone and settings give the same selection. Zero-shot, 0 bytes, always
    fits.

    Args:
        backbone: frozen CLIP.
        dataset: all images; ``config.shots`` and ``config.seed`` draw the training images.
        config: seed, epochs, template and the other settings that all methods share; its method
            and the method's own settings are ignored. With ``learning_rate = "auto"`` every
            candidate tries its method's rates.
        max_bytes: limit of the learned numbers; the header of a prompt file is not counted.
        candidates: "text" for prompts of the text tower, "all" to include those of the image tower
            (they need a vision transformer and cannot use cached features: far slower), or
            configurations.
        name: of the prompt, kept in its file.
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        progress: shows progress bars.
        on_candidate: called with each candidate once it has been measured.
        extras: what is made beside the learned numbers; a sketch counts for ``max_bytes``.

    Raises:
        ConfigInvalid: there are no validation images to select by, or ``max_bytes`` is negative.
    """
    if max_bytes < 0:
        raise ConfigInvalid(f"max_bytes is {max_bytes}; expected 0 or more.")
    trainer = Trainer(
        backbone, dataset, cache=cache, workers=workers, progress=progress, extras=extras
    )
    images = trainer.plan(config, name).images
    if images.val is None:
        raise ConfigInvalid(
            "Method 'auto' chooses by validation images, and there are none. "
            "Name a method, such as 'dip', or give more images."
        )
    plans = [
        PromptPlan(name=name, config=candidate, images=images)
        for candidate in candidate_configs(config, candidates)
    ]
    sized = [(plan, _sized(plan, trainer, max_bytes)) for plan in plans]
    skipped = [row for _, row in sized if row.skipped]
    trials = _tried([found for found in sized if not found[1].skipped], trainer, max_bytes)
    for trial in trials:
        on_candidate(trial.row)
    able = [trial for trial in trials if not trial.row.skipped]  # zero-shot is always one
    best = min(able, key=lambda trial: trial.row.selection_key)
    rows = mark_frontier(
        [*skipped, *(replace(trial.row, chosen=trial is best) for trial in trials)]
    )
    result = trainer.finish(best.plan, best.fit)
    notes = (*result.notes, *_notes(rows, best.row, max_bytes))
    return MethodSelection(result=replace(result, notes=notes), candidates=rows)


def candidate_configs(
    config: TrainConfig, candidates: CandidateSet | Sequence[TrainConfig] = "text"
) -> list[TrainConfig]:
    """Return the configurations to try; zero-shot is always among them."""
    if not isinstance(candidates, str):
        configs = list(candidates)
        if all(METHODS[c.method].learner for c in configs):
            configs.insert(0, make_config(config.shared(), method="zero-shot"))
        return configs
    described = TEXT if candidates == "text" else (*TEXT, *IMAGE)
    return [
        make_config(config.shared(), **own)
        if own["method"] == "zero-shot"
        else make_config(config.shared(), **{"templates": (), **own})
        for own in described
        if own["method"] in METHODS
    ]


def mark_frontier(rows: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Sort by size; set ``on_frontier`` where no candidate of as few bytes validates as well.

    Of equal candidates the first one is on the frontier.
    """
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


def describe_candidate(config: TrainConfig) -> Candidate:
    """Return a candidate with its label, before it is measured."""
    defaults = defaults_of(type(config.settings))
    own = {
        name: value
        for name, value in sorted(config.own().items())
        if (value != defaults[name] or name in ("rank", "bits", "tokens")) and value is not None
    }
    return Candidate(method=config.method, settings=own, size_bytes=None)


def _sized(plan: PromptPlan, trainer: Trainer, max_bytes: int) -> Candidate:
    """Return the candidate with its size, or with the reason why it is not learned."""
    config, row = plan.config, describe_candidate(plan.config)
    if METHODS[config.method].learner is None:
        return replace(row, size_bytes=0)
    try:
        run = Run(trainer.backbone, trainer.class_names, config, learning_rate=1.0)
        draft = trainer.draft(plan, BestFit(config=config, fitted=run.fitted(())))
    except (ConfigInvalid, BackboneUnsupported, PromptTooLong) as error:
        return replace(row, skipped=error.message)
    if isinstance(config.settings, AdaptSettings):
        return row  # pruned while learning: its size is known afterwards
    too_large = draft.payload_bytes > max_bytes
    return replace(row, size_bytes=draft.payload_bytes, skipped=TOO_LARGE if too_large else "")


def _tried(
    sized: Sequence[tuple[PromptPlan, Candidate]], trainer: Trainer, max_bytes: int
) -> list[_Trial]:
    """Learn candidates and measure what their prompt files would hold."""
    fits = trainer.fit([plan for plan, _ in sized])
    return [
        _Trial(plan=plan, fit=fit, row=_measured(plan, fit, row, trainer, max_bytes))
        for (plan, row), fit in zip(sized, fits, strict=True)
    ]


def _measured(
    plan: PromptPlan, fit: BestFit, row: Candidate, trainer: Trainer, max_bytes: int
) -> Candidate:
    """Return the candidate with its scores on the validation images."""
    stored = from_bytes(to_bytes(trainer.draft(plan, fit)))
    val = trainer.features(plan, "val")
    logits = prompt_logits(stored, trainer.backbone, val)  # (N, C)
    own = softmax(logits)[np.arange(len(val)), val.labels].astype(np.float64)  # (N,)
    too_large = stored.payload_bytes > max_bytes
    return replace(
        row,
        size_bytes=stored.payload_bytes,
        val_accuracy=float((logits.argmax(axis=1) == val.labels).mean()),
        val_loss=float(-np.log(own.clip(1e-30)).mean()),
        learning_rate=fit.fitted.learning_rate if fit.fitted else None,
        seconds=fit.seconds,
        skipped=TOO_LARGE if too_large else "",
    )


def _notes(rows: Sequence[Candidate], best: Candidate, max_bytes: int) -> tuple[str, ...]:
    learned = [row for row in rows if not row.skipped and row.method != "zero-shot"]
    sizes = [row.size_bytes for row in rows if row.size_bytes]
    if not learned:
        smallest = f"; the smallest candidate takes {min(sizes):,}" if sizes else ""
        return (
            f"No learned prompt fits into {max_bytes:,} bytes{smallest}. "
            f"The result is the unchanged template (zero-shot).",
        )
    if best.method == "zero-shot":
        return ("No learned candidate validates better than the template: zero-shot was chosen.",)
    return (f"Chosen by validation among {len(learned) + 1} candidates: {best.label}.",)
