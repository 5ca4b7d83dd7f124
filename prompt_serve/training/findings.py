"""Plain findings about a trained task: what its maker should know before relying on it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import file_digests
from prompt_serve.training.without_torch.evaluation import Evaluation, ZeroShotComparison
from prompt_serve.training.without_torch.outcome import TrainingResult

FEW_IMAGES = 5  # per class: below, cross-validation says little about the class
LOW_RECALL = 0.2
LARGE_GAP = 0.2  # between training and held-out accuracy
CONFUSIONS = 3  # pairs of classes kept in the file, for each part
NAMED = 5  # classes or files listed in a note
LONGEST_NAME = 40  # characters
TRIAL_BACKBONES = ("embedded", "embedded-vit")


def with_findings(result: TrainingResult, dataset: Split, *, workers: int = 4) -> TrainingResult:
    """Return a result with its findings: as notes for the user, and as metrics of the prompt file.

    Args:
        result: of training on ``dataset``.
        dataset: all images.
        workers: threads that read files.
    """
    prompt = result.prompt
    warnings = findings(
        dataset,
        result.comparisons,
        learned=bool(prompt.encodings),
        train_accuracy=result.train_accuracy,
        workers=workers,
    )
    metrics: dict[str, Any] = dict(prompt.metrics)
    for part, comparison in result.comparisons.items():
        metrics[part] = _facts(comparison, metrics[part])
    if result.train_accuracy is not None:
        metrics["train_accuracy"] = round(result.train_accuracy, 3)
    if warnings:
        metrics["warnings"] = list(warnings)
    return replace(
        result,
        prompt=replace(prompt, metrics=metrics),
        # The file names its backbone: no warning about it is stored.
        notes=(*result.notes, *warnings, *_trial_backbone(prompt.backbone.id)),
    )


def findings(
    dataset: Split,
    comparisons: Mapping[str, ZeroShotComparison],
    *,
    learned: bool = True,
    train_accuracy: float | None = None,
    workers: int = 4,
) -> tuple[str, ...]:
    """Return notes about the images and about what was learned from them.

    Args:
        dataset: all images.
        comparisons: by part; the first one is compared with the others.
        learned: False where the template is used as it is.
        train_accuracy: on the training images, if it was measured.
        workers: threads that read files.
    """
    notes = [*_few_images(dataset), *_duplicates(dataset, workers)]
    for part, comparison in comparisons.items():
        notes += _low_recall(dataset.class_names, part, comparison.prompt)
    if comparisons and learned:
        part, comparison = next(iter(comparisons.items()))
        notes += _as_good_as_zero_shot(part, comparison)
        notes += _gap(part, comparison.prompt, train_accuracy)
        notes += _different_test(part, comparison.prompt, comparisons.get("test"))
    return tuple(notes)


def _facts(comparison: ZeroShotComparison, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a part with interval and confusions, in as few digits as tell them."""
    evaluation = comparison.prompt
    shares = {name: round(value, 3) for name, value in metrics.items() if isinstance(value, float)}
    return {
        **metrics,
        **shares,
        "per_class": [None if a is None else round(a, 2) for a in evaluation.per_class],
        "interval": [round(bound, 3) for bound in evaluation.interval],
        "confusions": [list(pair) for pair in evaluation.confusions[:CONFUSIONS]],
    }


def _trial_backbone(backbone_id: str) -> list[str]:
    if backbone_id not in TRIAL_BACKBONES:
        return []
    return [
        f"Backbone {backbone_id!r} is a small one for trying; a CLIP such as ViT-B-16/openai "
        f"knows far more (--backbone)."
    ]


def _few_images(dataset: Split) -> list[str]:
    counts = {label: len(items) for label, items in dataset.train.by_label().items()}
    names = map(_shortened, dataset.class_names)
    few = [name for label, name in enumerate(names) if 0 < counts.get(label, 0) < FEW_IMAGES]
    if not few:
        return []
    return [f"Fewer than {FEW_IMAGES} training images: {_listed(few)}. Add images of them."]


def _duplicates(dataset: Split, workers: int) -> list[str]:
    """Find files with equal bytes: across parts, across classes, and within a class."""
    items = [(part, item) for part, images in dataset.parts.items() for item in images.items]
    digests = file_digests([item.path for _, item in items], workers=workers)
    seen: dict[str, tuple[str, int, PurePath]] = {}
    found: dict[str, list[str]] = {}
    for (part, item), digest in zip(items, digests, strict=True):
        if digest not in seen:
            seen[digest] = (part, item.label, PurePath(item.name))
            continue
        other_part, other_label, other = seen[digest]
        kind = (
            "in two classes"
            if other_label != item.label
            else f"in {other_part} and {part}"
            if other_part != part
            else "twice in a class"
        )
        pair = f"{_shortened(other.name)} = {_shortened(PurePath(item.name).name)}"
        found.setdefault(kind, []).append(pair)
    return [
        f"Equal images {kind}: {len(pairs)} ({_listed(pairs)}). "
        f"Remove them; accuracy on copies says nothing."
        for kind, pairs in found.items()
    ]


def _low_recall(class_names: Sequence[str], part: str, evaluation: Evaluation) -> list[str]:
    rows = list(zip(class_names, evaluation.per_class, evaluation.predicted, strict=True))
    never = [_shortened(name) for name, recall, times in rows if recall is not None and not times]
    low = [
        f"{_shortened(name)} {recall:.0%}"
        for name, recall, times in rows
        if recall is not None and recall < LOW_RECALL and times
    ]
    notes = [f"Never predicted ({part}): {_listed(never)}."] if never else []
    return [*notes, f"Hardly recognized ({part}): {_listed(low)}."] if low else notes


def _as_good_as_zero_shot(part: str, comparison: ZeroShotComparison) -> list[str]:
    learned, zero_shot = comparison.prompt, comparison.zero_shot
    low, _ = learned.interval
    if zero_shot.accuracy < low:
        return []
    return [
        f"The class names alone (zero-shot, {zero_shot.accuracy:.1%}) are about as good as what "
        f"was learned ({learned.accuracy:.1%}, {part})."
    ]


def _gap(part: str, held_out: Evaluation, train_accuracy: float | None) -> list[str]:
    """Compare training images with held-out images: by more than chance, and by much."""
    _, high = held_out.interval
    if train_accuracy is None or train_accuracy <= max(high, held_out.accuracy + LARGE_GAP):
        return []
    return [
        f"Training images are recognized far better ({train_accuracy:.0%}) than others "
        f"({held_out.accuracy:.0%}, {part}). More images per class help."
    ]


def _different_test(part: str, held_out: Evaluation, test: ZeroShotComparison | None) -> list[str]:
    """Compare test images with held-out images: their intervals should overlap."""
    if test is None:
        return []
    (low, high), (test_low, test_high) = held_out.interval, test.prompt.interval
    if low <= test_high and test_low <= high:
        return []
    return [
        f"Test images ({test.prompt.accuracy:.0%}) and held-out images ({held_out.accuracy:.0%}, "
        f"{part}) differ by more than chance: they may show different kinds of images."
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _shortened(name: str) -> str:
    """Return a name that a prompt file can hold: file names may not be Unicode."""
    name = name.encode(errors="replace").decode()
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
