"""Plain findings about a trained task: what its maker should know before relying on it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prompt_serve.measures import wilson_interval
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.features import file_digests
from prompt_serve.training.without_torch.evaluation import Evaluation, ZeroShotComparison

FEW_IMAGES = 5  # per class: below, cross-validation says little about the class
LOW_RECALL = 0.2
NAMED = 5  # classes or files listed in a note
TRIAL_BACKBONES = ("embedded", "embedded-vit")


def findings(
    dataset: Split,
    comparisons: Mapping[str, ZeroShotComparison],
    backbone_id: str,
    *,
    workers: int = 4,
) -> tuple[str, ...]:
    """Return notes about the images and about what was learned from them.

    Args:
        dataset: all images.
        comparisons: by part; the first one judges the classes, since it has the most images.
        backbone_id: for example "embedded".
        workers: threads that read files.
    """
    notes = [*_few_images(dataset), *_duplicates(dataset, workers)]
    if comparisons:
        part, comparison = next(iter(comparisons.items()))
        notes += _low_recall(dataset.class_names, part, comparison.prompt)
        notes += _as_good_as_zero_shot(part, comparison)
    if backbone_id in TRIAL_BACKBONES:
        notes.append(
            f"Backbone {backbone_id!r} is a small one for trying; a CLIP such as ViT-B-16/openai "
            f"knows far more (--backbone)."
        )
    return tuple(notes)


def _few_images(dataset: Split) -> list[str]:
    counts = {label: len(items) for label, items in dataset.train.by_label().items()}
    few = [dataset.class_names[label] for label, count in counts.items() if count < FEW_IMAGES]
    if not few:
        return []
    return [f"Fewer than {FEW_IMAGES} training images: {_listed(few)}. Add images of them."]


def _duplicates(dataset: Split, workers: int) -> list[str]:
    """Find files with equal bytes: across parts, across classes, and within a class."""
    items = [(part, item) for part, images in dataset.parts.items() for item in images.items]
    digests = file_digests([item.path for _, item in items], workers=workers)
    seen: dict[str, tuple[str, int, Path]] = {}
    found: dict[str, list[str]] = {}
    for (part, item), digest in zip(items, digests, strict=True):
        if digest not in seen:
            seen[digest] = (part, item.label, item.path)
            continue
        other_part, other_label, other = seen[digest]
        kind = (
            "in two classes"
            if other_label != item.label
            else f"in {other_part} and {part}"
            if other_part != part
            else "twice in a class"
        )
        found.setdefault(kind, []).append(f"{other.name} = {item.path.name}")
    return [
        f"Equal images {kind}: {len(pairs)} ({_listed(pairs)}). "
        f"Remove them; accuracy on copies says nothing."
        for kind, pairs in found.items()
    ]


def _low_recall(class_names: Sequence[str], part: str, evaluation: Evaluation) -> list[str]:
    low = [
        f"{name} {recall:.0%}"
        for name, recall in zip(class_names, evaluation.per_class, strict=True)
        if recall is not None and recall < LOW_RECALL
    ]
    return [f"Hardly recognized ({part}): {_listed(low)}."] if low else []


def _as_good_as_zero_shot(part: str, comparison: ZeroShotComparison) -> list[str]:
    learned, zero_shot = comparison.prompt, comparison.zero_shot
    low, _ = wilson_interval(round(learned.accuracy * learned.images), learned.images)
    if zero_shot.accuracy < low:
        return []
    return [
        f"The class names alone (zero-shot, {zero_shot.accuracy:.1%}) are about as good as what "
        f"was learned ({learned.accuracy:.1%}, {part})."
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
