"""Text that ``prompt-serve train`` prints: notes, accuracies, classes, confusions, sizes."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.training.multi_label.train import MultiLabelResult
    from prompt_serve.training.without_torch.evaluation import ZeroShotComparison
    from prompt_serve.training.without_torch.outcome import TrainingResult

CLASSES_SHOWN = 40
CONFUSIONS_SHOWN = 3


def training_document(
    result: "TrainingResult | MultiLabelResult", out: Path, file_bytes: int
) -> dict[str, Any]:
    """Return the facts of a finished prompt in JSON types."""
    prompt = result.prompt
    return {
        "file": str(out),
        "name": prompt.name,
        "method": prompt.method,
        "class_names": list(prompt.class_names),
        "images": dict(result.images),
        "learned_numbers": prompt.learned_numbers,
        "payload_bytes": prompt.payload_bytes,
        "file_bytes": file_bytes,
        "temperature": prompt.temperature,
        "unknown_below": prompt.unknown_below,
        "unlike_below": None if prompt.sketch is None else prompt.unlike_below,
        "training": dict(prompt.training),
        "metrics": dict(prompt.metrics),
        "held_out": _held_out(result),
        "notes": list(result.notes),
        "seconds": dict(result.seconds),
    }


def _held_out(result: "TrainingResult | MultiLabelResult") -> dict[str, Any]:
    """Return by part what the metrics of the file round."""
    return {
        part: {
            "images": comparison.prompt.images,
            "accuracy": comparison.prompt.accuracy,
            "zero_shot_accuracy": comparison.zero_shot.accuracy,
            "calibration_error": comparison.prompt.calibration_error,
        }
        for part, comparison in getattr(result, "comparisons", {}).items()
    }


def training_report(result: "TrainingResult", out: Path, file_bytes: int) -> Iterable[str]:
    """Yield the lines that are shown for a finished prompt."""
    prompt = result.prompt
    images = ", ".join(f"{count} {part}" for part, count in result.images.items())
    yield f"{counted(len(prompt.class_names), 'class')}; images: {images}"
    yield from (f"Note: {note}" for note in result.notes)
    if result.comparisons:
        yield ""
        width = max(12, *map(len, result.comparisons))
        method_width = max(9, len(prompt.method))
        yield (
            f"{'accuracy':<{width}} {'zero-shot':>9} {prompt.method:>{method_width}} {'ECE':>7} "
            f"{'95 % interval':>16}"
        )
        for part, comparison in result.comparisons.items():
            zero_shot, learned = comparison.zero_shot.accuracy, comparison.prompt
            error = learned.calibration_error
            low, high = learned.interval
            yield (
                f"{part:<{width}} {zero_shot:>9.1%} {learned.accuracy:>{method_width}.1%} "
                f"{error:>7.1%} {low:>9.1%} to {high:.1%}"
            )
        part, comparison = list(result.comparisons.items())[-1]
        yield ""
        yield from _per_class(part, comparison, prompt.class_names, prompt.method)
        yield from _confused(part, comparison, prompt.class_names)
    yield ""
    if prompt.classes is not None:
        yield (
            f"learned      {counted(prompt.learned_numbers, 'number')} (shrinkage "
            f"{prompt.training['shrinkage']:g}, weight of the text "
            f"{prompt.training['text_weight']:g})"
        )
    elif prompt.encodings:
        rate = prompt.training["learning_rate"]
        yield f"learned      {counted(prompt.learned_numbers, 'number')} (learning rate {rate:g})"
    yield f"payload      {counted(prompt.payload_bytes, 'byte')}"
    if (prompt.temperature, prompt.unknown_below) != (1.0, 0.0):
        yield f"calibration  temperature {prompt.temperature:.3g}{_threshold(prompt.unknown_below)}"
    if prompt.sketch is not None:
        size = sum(tensor.nbytes for tensor in prompt.sketch.tensors().values())
        yield (
            f"sketch       {size:,} of these bytes; an image whose cosine to it is below "
            f"{prompt.unlike_below:.3g} is unknown"
        )
    yield f"file         {counted(file_bytes, 'byte')}, {out}"
    seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in result.seconds.items())
    yield f"seconds      {seconds}"


def _threshold(unknown_below: float) -> str:
    return f", unknown below {unknown_below:.3g}" if unknown_below else ""


def _per_class(
    part: str, comparison: "ZeroShotComparison", class_names: tuple[str, ...], method: str
) -> Iterable[str]:
    names = (f"class ({part})", *class_names[:CLASSES_SHOWN])
    width = min(40, max(12, *map(len, names)))
    method_width = max(9, len(method))
    yield f"{f'class ({part})':<{width}} {'zero-shot':>9} {method:>{method_width}}"
    rows = zip(
        class_names, comparison.zero_shot.per_class, comparison.prompt.per_class, strict=True
    )
    for name, before, after in list(rows)[:CLASSES_SHOWN]:
        yield f"{name[:width]:<{width}} {_percent(before):>9} {_percent(after):>{method_width}}"
    if len(class_names) > CLASSES_SHOWN:
        yield f"... and {len(class_names) - CLASSES_SHOWN} more; the prompt file has them all"


def _confused(
    part: str, comparison: "ZeroShotComparison", class_names: tuple[str, ...]
) -> Iterable[str]:
    pairs = [
        f"{class_names[true]} as {class_names[other]} ({images})"
        for true, other, images in comparison.prompt.confusions[:CONFUSIONS_SHOWN]
    ]
    if pairs:
        yield ""
        yield f"most confused ({part}, images): {', '.join(pairs)}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
