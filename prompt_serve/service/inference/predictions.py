"""Image features and tasks -> one result per image, with predictions or an error."""

from collections.abc import Iterable, Sequence

import numpy as np

from prompt_serve.errors import PromptServeError
from prompt_serve.schemas import (
    EmbeddedImage,
    ImageLine,
    ImageResult,
    LastLine,
    TaskPrediction,
)
from prompt_serve.service.inference.batcher import Outcome
from prompt_serve.service.inference.requests import EmbeddingItem, ImageItem
from prompt_serve.service.problems import problem_of
from prompt_serve.tasks.predictions import Predictions
from prompt_serve.types import FloatArray


def results_json(
    items: Sequence[ImageItem | EmbeddingItem],
    outcomes: Sequence[Outcome],
    predictions: Predictions,
    first: int = 0,
) -> bytes:
    """Return the JSON of one result per image, separated by commas: the next of ``predictions`` if
    the image has features, or its error.

    Args:
        items: some of the images of a request.
        outcomes: features or error of each.
        predictions: of those with features.
        first: index of the first image.
    """
    of_features = iter(predictions)

    def result(index: int, filename: str | None, outcome: Outcome) -> ImageResult:
        if isinstance(outcome, PromptServeError):
            return ImageResult(index=index, filename=filename, error=problem_of(outcome))
        return ImageResult(index=index, filename=filename, predictions=next(of_features))

    return b",".join(
        result(index, item.filename, outcome).model_dump_json(exclude_none=True).encode()
        for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True), first)
    )


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
    """Return the features, those of the first pass, or the error of every image."""
    return [
        EmbeddedImage(index=index, filename=item.filename, error=problem_of(outcome))
        if isinstance(outcome, PromptServeError)
        else EmbeddedImage(index=index, filename=item.filename, embedding=outcome[0].tolist())
        for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
    ]


def embedding_rows(outcomes: Sequence[Outcome], width: int) -> tuple[FloatArray, list[int]]:
    """Stack features of the first pass to (N, E); images with an error get a row of NaN, and their
    indices are returned."""
    rows = np.full((len(outcomes), width), np.nan, dtype=np.float32)
    failed = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, PromptServeError):
            failed.append(index)
        else:
            rows[index] = outcome[0]
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
