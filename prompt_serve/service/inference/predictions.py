"""Image features and tasks -> one result per image, with predictions or an error."""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from prompt_serve.errors import PromptServeError
from prompt_serve.schemas import (
    ClassScore,
    EmbeddedImage,
    ImageLine,
    ImageResult,
    LastLine,
    TaskPrediction,
)
from prompt_serve.scoring import (
    BestClasses,
    best_classes,
    best_labels,
    is_unknown,
    is_unlike,
)
from prompt_serve.service.inference.batcher import Outcome
from prompt_serve.service.inference.requests import EmbeddingItem, ImageItem
from prompt_serve.service.problems import problem_of
from prompt_serve.service.tasks.task import Task
from prompt_serve.types import FloatArray

NamedTasks = Sequence[tuple[str, Task]]  # requested name, and the task it resolved to
Predictions = Sequence[list[TaskPrediction]]  # of every task, for each image with features

# Images are scored in blocks of at most this many logits, which bounds the memory of all arrays.
_LOGITS_PER_BLOCK = 2_000_000


def image_results(
    items: Sequence[ImageItem | EmbeddingItem],
    outcomes: Sequence[Outcome],
    predictions: Predictions,
) -> list[ImageResult]:
    """Return one result per image: the next of ``predictions`` if it has features, or its error."""
    of_features = iter(predictions)
    return [
        ImageResult(index=index, filename=item.filename, error=problem_of(outcome))
        if isinstance(outcome, PromptServeError)
        else ImageResult(index=index, filename=item.filename, predictions=next(of_features))
        for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
    ]


def error_lines(items: Sequence[ImageItem | EmbeddingItem], outcomes: Sequence[Outcome]) -> bytes:
    """Return one line of JSON per image with an error."""
    return _json_lines(
        ImageLine(index=index, filename=item.filename, error=problem_of(outcome))
        for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
        if isinstance(outcome, PromptServeError)
    )


def prediction_lines(images: Sequence[tuple[int, str | None]], predictions: Predictions) -> bytes:
    """Return one line of JSON per task and image, task by task.

    Args:
        images: index and file name of each image in ``predictions``.
        predictions: of the same tasks for every image.
    """
    return _json_lines(
        ImageLine(index=index, filename=filename, prediction=prediction)
        for of_task in zip(*predictions, strict=True)
        for (index, filename), prediction in zip(images, of_task, strict=True)
    )


def labels_given(predictions: Predictions) -> int:
    """Count the labels that multi-label tasks gave; ``top_k`` does not limit them."""
    return sum(len(one.labels or ()) for of_image in predictions for one in of_image)


class BestTasks:
    """The best ``k`` of all predictions that are added, per image.

    Predictions are ordered by the probability of their best class, highest first; all that say
    ``unknown`` come after the others; equal ones keep the order in which they are added.
    """

    def __init__(self, n_images: int, k: int) -> None:
        self._k = k
        self.by_image: list[list[TaskPrediction]] = [[] for _ in range(n_images)]

    def add(self, predictions: Predictions) -> None:
        """Add the predictions of more tasks for each image."""
        for best, added in zip(self.by_image, predictions, strict=True):
            best[:] = sorted([*best, *added], key=_rank)[: self._k]


def _rank(prediction: TaskPrediction) -> tuple[bool, float]:
    return prediction.unknown, -prediction.classes[0].probability


def embedding_results(
    items: Sequence[ImageItem], outcomes: Sequence[Outcome]
) -> list[EmbeddedImage]:
    """Return the features or the error of every image."""
    return [
        EmbeddedImage(index=index, filename=item.filename, error=problem_of(outcome))
        if isinstance(outcome, PromptServeError)
        else EmbeddedImage(index=index, filename=item.filename, embedding=outcome.tolist())
        for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
    ]


def embedding_rows(outcomes: Sequence[Outcome], width: int) -> tuple[FloatArray, list[int]]:
    """Stack features to (N, E); images with an error get a row of NaN, and their indices are
    returned."""
    rows = np.full((len(outcomes), width), np.nan, dtype=np.float32)
    failed = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, PromptServeError):
            failed.append(index)
        else:
            rows[index] = outcome
    return rows, failed


def raise_if_all_failed(
    items: Sequence[ImageItem | EmbeddingItem], outcomes: Sequence[Outcome]
) -> None:
    """Raise the first image's error, listing those of all images, if no image has features."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, PromptServeError)]
    if not errors or len(errors) < len(outcomes):
        return
    first = errors[0]
    if len(errors) == 1:
        raise first
    listed = [
        {"index": index, "filename": item.filename, **problem_of(error).model_dump()}
        for index, (item, error) in enumerate(zip(items, errors, strict=True))
    ]
    message = f"All {len(errors)} images failed. The first: {first.message}"
    raise type(first)(message, **{**first.facts, "errors": listed})


def json_line(line: ImageLine | LastLine) -> bytes:
    """Return a line of NDJSON."""
    return f"{line.model_dump_json(exclude_none=True)}\n".encode()


def _json_lines(lines: Iterable[ImageLine]) -> bytes:
    return b"".join(map(json_line, lines))


def predictions_by_image(
    features: Sequence[FloatArray], tasks: NamedTasks, top_k: int, logit_scale: float
) -> list[list[TaskPrediction]]:
    """Score features (E,) by every task; return the predictions of all tasks for each of them."""
    n_classes = sum(len(task.class_names) for _, task in tasks)
    block = max(1, _LOGITS_PER_BLOCK // max(1, n_classes))
    rows, predictions = iter(features), []
    while images := list(islice(rows, block)):
        stacked = np.stack(images)  # (B, E)
        best = _best(stacked, [task for _, task in tasks], top_k, logit_scale)
        alike = [_similarities(stacked, task) for _, task in tasks]
        for image in range(len(images)):
            predictions.append(
                [
                    _prediction(name, task, of_task, image, None if like is None else like[image])
                    for (name, task), of_task, like in zip(tasks, best, alike, strict=True)
                ]
            )
    return predictions


def _best(
    images: FloatArray, tasks: Sequence[Task], top_k: int, logit_scale: float
) -> list[BestClasses]:
    """Score images (B, E) by every task: by a softmax, or by one sigmoid per label."""
    single = [task for task in tasks if task.label_scores is None]
    of_single = iter(
        best_classes(
            images,
            [task.class_features for task in single],
            logit_scale,
            [task.temperature for task in single],
            top_k,
        )
    )
    return [
        next(of_single)
        if task.label_scores is None
        else best_labels(images, task.class_features, task.label_scores, logit_scale, top_k)
        for task in tasks
    ]


def _similarities(images: FloatArray, task: Task) -> list[float] | None:
    """Cosines (B,) of images (B, E) to the nearest direction of a task's sketch, if it has one."""
    if task.sketch is None:
        return None
    nearest: list[float] = (images @ task.sketch.T).max(axis=1).tolist()
    return nearest


def _prediction(
    name: str, task: Task, best: BestClasses, image: int, similarity: float | None
) -> TaskPrediction:
    probabilities = best.probabilities[image].tolist()
    scores = zip(
        best.labels[image].tolist(), probabilities, best.logits[image].tolist(), strict=True
    )
    unknown = is_unlike(similarity, task.unlike_below)
    labels = None
    if best.accepted is None:
        unknown = unknown or is_unknown(probabilities[0], task.unknown_below)
    else:
        labels = [task.class_names[label] for label in best.accepted[image].tolist()]
    return TaskPrediction(
        task=name,
        version=task.version,
        unknown=unknown,
        similarity=similarity,
        labels=labels,
        classes=[
            ClassScore(
                class_name=task.class_names[label],
                label=label,
                probability=probability,
                logit=logit,
            )
            for label, probability, logit in scores
        ],
    )
