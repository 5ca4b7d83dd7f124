"""Image features and tasks -> predictions, for the service and for programs without one."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from prompt_serve.schemas import ClassScore, TaskPrediction
from prompt_serve.scoring import (
    BestClasses,
    best_classes,
    best_labels,
    is_unknown,
    is_unlike,
)
from prompt_serve.tasks.image_passes import ImagePasses
from prompt_serve.tasks.task import Task
from prompt_serve.types import FloatArray

NamedTasks = Sequence[tuple[str, Task]]  # requested name, and the task it resolved to
Predictions = Sequence[list[TaskPrediction]]  # of every task, for each image with features

# Images are scored in blocks of at most this many logits, which bounds the memory of all arrays.
_LOGITS_PER_BLOCK = 2_000_000


def predictions_of_passes(
    features: Sequence[FloatArray],
    passes: ImagePasses,
    tasks: NamedTasks,
    top_k: int,
    logit_scale: float,
) -> list[list[TaskPrediction]]:
    """Score each task by the features of its pass; return predictions in the tasks' order.

    Args:
        features: (V, E) of each image, a row for each pass.
        passes: the V passes.
        tasks: named tasks.
        top_k: number of classes per task.
        logit_scale: of the backbone.
    """
    of_pass: dict[int, list[int]] = {}
    for position, (_, task) in enumerate(tasks):
        of_pass.setdefault(passes.index_of(task), []).append(position)
    placed: list[dict[int, TaskPrediction]] = [{} for _ in features]
    for index, positions in of_pass.items():
        by_image = predictions_by_image(
            [of_image[index] for of_image in features],
            [tasks[position] for position in positions],
            top_k,
            logit_scale,
        )
        for image, predictions in zip(placed, by_image, strict=True):
            image.update(zip(positions, predictions, strict=True))
    return [[image[position] for position in range(len(tasks))] for image in placed]


def predictions_by_image(
    features: Sequence[FloatArray], tasks: NamedTasks, top_k: int, logit_scale: float
) -> list[list[TaskPrediction]]:
    """Score features (E,) by every task; return the predictions of all tasks for each of them."""
    n_classes = sum(len(task.class_names) for _, task in tasks)
    block = max(1, _LOGITS_PER_BLOCK // max(1, n_classes))
    rows, predictions = iter(features), []
    while images := list(islice(rows, block)):
        stacked = np.array(images)  # (B, E)
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
