"""Metrics of a prompt file as lines: accuracies, the lowest recalls, confusions, warnings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from prompt_serve.errors import counted

CLASSES_SHOWN = 5


class PartMetrics(BaseModel):
    """What ``prompt-serve train`` stores about a part; further keys are ignored."""

    images: int
    accuracy: float
    zero_shot_accuracy: float | None = None
    calibration_error: float | None = None
    unknown: float | None = None
    interval: tuple[float, float] | None = None
    per_class: list[float | None] = []
    confusions: list[tuple[int, int, int]] = []


def metric_lines(
    metrics: Mapping[str, Any], class_names: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """Return lines for the metrics that are known, and the others as they are.

    Args:
        metrics: of a prompt file, free form.
        class_names: C names, in the order of the labels.
    """
    lines: list[str] = []
    others: dict[str, Any] = {}
    for key, value in metrics.items():
        if key == "warnings" and isinstance(value, list):
            lines += [f"  {'warning':<14} {warning}" for warning in value]
        elif part := _part(value, len(class_names)):
            lines += _part_lines(key, part, class_names)
        else:
            others[key] = value
    return lines, others


def _part(value: object, n_classes: int) -> PartMetrics | None:
    """Return the metrics of a part, unless the value is something else."""
    try:
        part = PartMetrics.model_validate(value)
    except ValidationError:
        return None
    labels = [label for true, other, _ in part.confusions for label in (true, other)]
    fits = len(part.per_class) in (0, n_classes) and all(0 <= i < n_classes for i in labels)
    return part if fits else None


def _part_lines(name: str, part: PartMetrics, class_names: Sequence[str]) -> Iterable[str]:
    low_high = part.interval
    interval = f" (95 % interval {low_high[0]:.1%} to {low_high[1]:.1%})" if low_high else ""
    further = {
        "zero-shot": part.zero_shot_accuracy,
        "calibration error": part.calibration_error,
        "unknown": part.unknown,
    }
    rest = "".join(f", {key} {share:.1%}" for key, share in further.items() if share is not None)
    yield f"  {name:<14} {part.accuracy:.1%} of {counted(part.images, 'image')}{interval}{rest}"
    measured = zip(part.per_class, class_names, strict=bool(part.per_class))
    recalls = sorted((recall, name) for recall, name in measured if recall is not None)
    if recalls:
        lowest = [f"{name} {recall:.0%}" for recall, name in recalls[:CLASSES_SHOWN]]
        yield f"  {'  recall':<14} {', '.join(lowest)}{_more(recalls)}"
    pairs = [
        f"{class_names[true]} as {class_names[other]} ({images})"
        for true, other, images in part.confusions
    ]
    if pairs:
        yield f"  {'  confused':<14} {', '.join(pairs)}"


def _more(recalls: Sequence[object]) -> str:
    more = len(recalls) - CLASSES_SHOWN
    return f", and {counted(more, 'class')} with more" if more > 0 else ""
