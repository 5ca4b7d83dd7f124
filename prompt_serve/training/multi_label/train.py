"""From images with labels to a multi-label prompt file: encode, learn in closed form, measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prompt_serve import __version__
from prompt_serve.closed_form.label_calibration import FEW_IMAGES
from prompt_serve.closed_form.multi_label import LearnedLabels, learn_labels
from prompt_serve.errors import ConfigInvalid, counted
from prompt_serve.label_measures import LabelEvaluation, evaluate_labels
from prompt_serve.prompts.class_vectors import LabelVectors
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.training.data.features import FeatureCache, ImageEncoder, image_features
from prompt_serve.training.multi_label.dataset import (
    LabeledPart,
    MultiLabelDataset,
    conflicting_copies,
    training_part,
)
from prompt_serve.training.progress import SILENT, Progress, StageTimer
from prompt_serve.types import BoolArray, FloatArray

METHOD = "multi-label"
NAMED = 5  # labels or files listed in a note


@dataclass(frozen=True, kw_only=True)
class MultiLabelRun:
    """Settings of a run."""

    bits: Sequence[int] = (4,)  # per number; the first that fits into ``max_bytes`` is taken
    max_bytes: int | None = None  # limit of the tensors in the file; None: no limit
    seed: int = 1  # of the folds


@dataclass(frozen=True, kw_only=True)
class MultiLabelResult:
    """A finished prompt and its measurements."""

    prompt: Prompt
    evaluations: Mapping[str, LabelEvaluation]  # "cross-validation", and "test" where it exists
    images: Mapping[str, int]  # used, by part
    notes: tuple[str, ...]  # for the user
    seconds: Mapping[str, float]  # by stage


def train_multi_label(
    encoder: ImageEncoder,
    dataset: MultiLabelDataset,
    run: MultiLabelRun,
    *,
    name: str = "task",
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
) -> MultiLabelResult:
    """Learn from all images but those for testing, which are evaluated once, at the end.

    Args:
        encoder: image tower, in PyTorch or ONNX Runtime.
        dataset: all images.
        run: settings.
        name: of the task, kept in its file.
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        progress: shows progress bars.

    Raises:
        ConfigInvalid: no number of bits fits into ``run.max_bytes``.
    """
    timer = StageTimer()
    train, test = training_part(dataset), dataset.parts.get("test")

    def encoded(part: str, images: LabeledPart) -> FloatArray:
        with timer("features"):
            return part_features(
                part, images, encoder, cache=cache, workers=workers, progress=progress
            )

    features = encoded("train", train)
    with timer("learning"):
        learned, draft = _within_budget(features, train.labels, dataset, run, encoder, name)
    test_features = None if test is None else encoded("test", test)
    with timer("evaluation"):
        # Through the file's bytes on purpose: what is measured is what will be served.
        stored = from_bytes(to_bytes(draft))
        evaluations = {"cross-validation": _cross_validation(learned)}
        if test is not None and test_features is not None:
            evaluations["test"] = evaluate_on(stored, test_features, test.labels)
        counts = {part: len(images) for part, images in dataset.parts.items()}
        metrics = {part: found.to_dict() for part, found in evaluations.items()}
        prompt = replace(
            stored,
            probe=probe(label_vectors(stored).class_features()[0]),
            metrics={**metrics, "images": counts},
        )
    return MultiLabelResult(
        prompt=prompt,
        evaluations=evaluations,
        images=counts,
        notes=_notes(dataset, train, workers),
        seconds=timer.seconds,
    )


def part_features(
    part: str,
    images: LabeledPart,
    encoder: ImageEncoder,
    *,
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
) -> FloatArray:
    """Return the features (N, E) of the plain views of a part."""
    with progress.bar(f"encoding {part}", len(images), "img") as advance:
        found = image_features(
            images.images, encoder, cache=cache, workers=workers, advance=advance
        )
    return found.plain


def evaluate_on(prompt: Prompt, features: FloatArray, labels: BoolArray) -> LabelEvaluation:
    """Measure a multi-label prompt on images as the service answers them.

    Args:
        prompt: as read from a file.
        features: (N, E), unit length along E.
        labels: (N, C), in the order of the prompt's class names.
    """
    directions, scores = label_vectors(prompt).class_features()
    unknown = None
    if prompt.sketch is not None:
        similarities = (features @ prompt.sketch.directions().T).max(axis=1)  # (N,)
        unknown = similarities < prompt.unlike_below
    probabilities = scores.probabilities(features @ directions.T)
    return evaluate_labels(probabilities, labels, scores.thresholds, unknown)


def label_vectors(prompt: Prompt) -> LabelVectors:
    """Return the label vectors of a multi-label prompt."""
    if not isinstance(prompt.classes, LabelVectors):
        raise TypeError(f"Prompt {prompt.name!r} is not a multi-label task.")
    return prompt.classes


def _within_budget(
    features: FloatArray,
    labels: BoolArray,
    dataset: MultiLabelDataset,
    run: MultiLabelRun,
    encoder: ImageEncoder,
    name: str,
) -> tuple[LearnedLabels, Prompt]:
    """Learn with the first number of bits whose tensors fit."""
    for bits in run.bits:
        learned = learn_labels(features, labels, bits=bits, seed=run.seed)
        draft = Prompt(
            name=name,
            method=METHOD,
            class_names=dataset.class_names,
            templates=(DEFAULT_TEMPLATE,),  # nothing reads it
            backbone=encoder.ref,
            probe=np.zeros(len(dataset.class_names), dtype=np.float16),
            classes=learned.vectors,
            sketch=learned.sketch,
            unlike_below=learned.unlike_below,
            training={
                "method": METHOD,
                "seed": run.seed,
                "bits": bits,
                "shrinkage": learned.shrinkage,
            },
            tool_version=__version__,
        )
        if run.max_bytes is None or draft.payload_bytes <= run.max_bytes:
            return learned, draft
    raise ConfigInvalid(
        f"Label vectors for {len(dataset.class_names)} labels take {draft.payload_bytes:,} bytes "
        f"or more; the limit is {run.max_bytes:,}. Raise it with --max-bytes."
    )


def _cross_validation(learned: LearnedLabels) -> LabelEvaluation:
    held = learned.out_of_fold
    thresholds = learned.vectors.thresholds.astype(np.float32)
    return evaluate_labels(held.probabilities, held.labels, thresholds)


def _notes(dataset: MultiLabelDataset, train: LabeledPart, workers: int) -> tuple[str, ...]:
    notes = list(dataset.notes)
    if "test" not in dataset.parts:
        notes.append(
            "There are no test images; F1 is that of the images that chose the thresholds."
        )
    counts = train.labels.sum(axis=0)
    few = [n for n, count in zip(dataset.class_names, counts, strict=True) if count < FEW_IMAGES]
    if few:
        notes.append(
            f"Fewer than {FEW_IMAGES} training images: {_listed(few)}. Their thresholds follow "
            f"those of the other labels; add images of them."
        )
    if bare := int((~train.labels.any(axis=1)).sum()):
        notes.append(f"{counted(bare, 'training image')} without a label.")
    if pairs := conflicting_copies(dataset, workers=workers):
        named = _listed([f"{first.name} = {second.name}" for first, second in pairs])
        notes.append(
            f"Equal images with different labels: {len(pairs)} ({named}). They count as different "
            f"images; list each once, with all its labels."
        )
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
