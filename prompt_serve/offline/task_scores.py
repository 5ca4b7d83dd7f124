"""Score many embeddings by many tasks: chunked matrix products over stacked class features.

Tasks of about the same number of classes are stacked to one matrix, so that thousands of them cost
a few large matrix products. What follows a product (softmax, best classes) runs in threads on
blocks that fit into a core's cache. Tasks of few classes lie across: first the first class of every
task, then the second ones, so that reductions over the classes are vectorized over the tasks.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prompt_serve.scoring import best_labels, first_largest
from prompt_serve.tasks.predictions import NamedTasks
from prompt_serve.tasks.task import Task
from prompt_serve.types import BoolArray, FloatArray, IntArray

_MAX_COLUMNS = 16_384  # of a stacked matrix
_BLOCK_LOGITS = 8 * 2**20  # of a matrix product
_CACHED_LOGITS = 2**18  # of a block that is worked on in a thread: 1 MiB
_MIN_ROWS = 16
_MAX_ACROSS = 64  # classes of tasks that lie across
_MAX_PASSES = 16  # over tasks that lie across, one for each of the best classes
_NO_CLASS = -1e9  # added to the cosine of a place without a class


@dataclass(frozen=True)
class LabelColumns:
    """Labels that N images have of a multi-label task, best first."""

    lengths: IntArray  # (N,) number of labels per image
    labels: IntArray  # of all images, one after the other


@dataclass(frozen=True)
class TaskScores:
    """Best classes of T tasks for N images; tasks with fewer than k classes are padded."""

    labels: IntArray  # (N, T, k)
    probabilities: FloatArray  # (N, T, k)
    unknown: BoolArray  # (N, T)
    of_labels: dict[int, LabelColumns]  # by index of the multi-label tasks


def best_tasks(scores: TaskScores, k: int, failed: Iterable[int]) -> IntArray:
    """Return the rows (N, k) of the best tasks of each image, out of N x T rows.

    Tasks are ordered by the probability of their best class; those that find the image unknown
    come after the others, and equal ones keep their order, as in an answer of the service.

    Args:
        scores: of N images and T tasks.
        k: number of tasks per image, at most T.
        failed: images without a score, whose tasks keep their order.
    """
    n, n_tasks = scores.unknown.shape
    ranks = np.where(scores.unknown, 2.0, 0.0) - scores.probabilities[..., 0].astype(np.float64)
    ranks[list(failed)] = 0.0
    order = np.argsort(ranks, axis=1, kind="stable")
    rows: IntArray = order[:, :k] + np.arange(n)[:, np.newaxis] * n_tasks
    return rows


class TaskScorer:
    """Tasks stacked to matrices. Thread-safe.

    Args:
        tasks: named tasks of one backbone.
        logit_scale: of the backbone.
        top_k: number of classes per task.
        threads: number of threads for everything but the matrix products.
    """

    def __init__(
        self, tasks: NamedTasks, *, logit_scale: float, top_k: int, threads: int = 1
    ) -> None:
        self.tasks = tuple(tasks)
        self._logit_scale = logit_scale
        self.k = min(top_k, max(len(task.class_names) for _, task in self.tasks))
        across = _MAX_ACROSS if top_k <= _MAX_PASSES else 0
        self._stacks = _stacked([task for _, task in self.tasks], logit_scale, across=across)
        self._threads = threads

    def __call__(self, features: Sequence[FloatArray]) -> TaskScores:
        """Score images.

        Args:
            features: (N, E) unit length, for each task; those of one pass are one array.
        """
        n = len(features[0])
        scores = TaskScores(
            np.zeros((n, len(self.tasks), self.k), dtype=np.int64),
            np.zeros((n, len(self.tasks), self.k), dtype=np.float32),
            np.zeros((n, len(self.tasks)), dtype=np.bool_),
            {},
        )
        with ThreadPoolExecutor(self._threads, "score") as pool:
            for stack in self._stacks:
                self._score_stack(stack, features[stack.places[0]], scores, pool)
        for place, (_, task) in enumerate(self.tasks):
            if task.label_scores is not None:
                self._score_labels(place, task, features[place], scores)
            if task.sketch is not None:
                similarities = _similarities(features[place], task.sketch)
                scores.unknown[:, place] |= similarities.astype(np.float64) < task.unlike_below
        return scores

    def _score_stack(
        self, stack: "_Stack", features: FloatArray, scores: TaskScores, pool: ThreadPoolExecutor
    ) -> None:
        n, columns = len(features), len(stack.matrix)
        rows = max(1, min(n, max(_MIN_ROWS, _BLOCK_LOGITS // columns)))
        cached = max(1, _CACHED_LOGITS // columns)
        logits = np.empty((rows, columns), dtype=np.float32)
        for start in range(0, n, rows):
            some = features[start : start + rows]
            block = np.matmul(some, stack.matrix.T, out=logits[: len(some)])

            def finish(at: int, block: FloatArray = block, start: int = start) -> None:
                self._finish(stack, block[at : at + cached], start + at, scores)

            list(pool.map(finish, range(0, len(some), cached)))

    def _finish(self, stack: "_Stack", cosines: FloatArray, start: int, scores: TaskScores) -> None:
        """Select the best classes of cosines (B, T * W), which are overwritten."""
        if stack.padding is not None:
            cosines += stack.padding
        best = _best_across if stack.across else _best_along
        labels, probabilities = best(cosines, stack.slopes, self.k)
        own = slice(start, start + len(cosines)), stack.columns, slice(labels.shape[2])
        scores.labels[own] = labels
        scores.probabilities[own] = probabilities
        scores.unknown[own[:2]] = probabilities[..., 0] < stack.unknown_below

    def _score_labels(
        self, place: int, task: Task, features: FloatArray, scores: TaskScores
    ) -> None:
        assert task.label_scores is not None  # noqa: S101  # for the type checker
        rows = max(1, _BLOCK_LOGITS // len(task.class_names))
        lengths: list[IntArray] = []
        labels: list[IntArray] = []
        for start in range(0, len(features), rows):
            some = features[start : start + rows]
            best = best_labels(
                some, task.class_features, task.label_scores, self._logit_scale, self.k
            )
            k = best.labels.shape[1]
            scores.labels[start : start + len(some), place, :k] = best.labels
            scores.probabilities[start : start + len(some), place, :k] = best.probabilities
            accepted = best.accepted or ()
            lengths.append(np.array([len(own) for own in accepted], dtype=np.int64))
            labels += accepted
        nothing = np.zeros(0, dtype=np.int64)
        scores.of_labels[place] = LabelColumns(
            np.concatenate([nothing, *lengths]), np.concatenate([nothing, *labels])
        )


def _best_along(cosines: FloatArray, slopes: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """Return labels and probabilities (B, T, k) of cosines (B, T * W), task by task."""
    by_task = cosines.reshape(len(cosines), len(slopes), -1)  # (B, T, W)
    k = min(k, by_task.shape[2])
    labels = first_largest(by_task, k)
    best = np.take_along_axis(by_task, labels, axis=2)
    top = best[..., :1]
    by_task -= top
    by_task *= slopes[:, np.newaxis]
    np.exp(by_task, out=by_task)
    totals = by_task.sum(axis=2, keepdims=True)
    return labels, np.exp((best - top) * slopes[:, np.newaxis]) / totals


def _best_across(cosines: FloatArray, slopes: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """Return labels and probabilities (B, T, k) of cosines (B, W * T), class by class."""
    by_class = cosines.reshape(len(cosines), -1, len(slopes))  # (B, W, T)
    k = min(k, by_class.shape[1])
    labels = np.empty((len(cosines), len(slopes), k), dtype=np.int64)
    tops = np.empty((len(cosines), len(slopes), k), dtype=np.float32)
    rest = by_class if k == 1 else by_class.copy()
    for rank in range(k):
        tops[..., rank] = rest.max(axis=1)
        labels[..., rank] = _first_from(tops[..., rank], rest)
        if rank < k - 1:
            np.put_along_axis(rest, labels[:, np.newaxis, :, rank], -np.inf, axis=1)
    by_class -= tops[:, np.newaxis, :, 0]
    by_class *= slopes
    np.exp(by_class, out=by_class)
    totals = by_class.sum(axis=1)[..., np.newaxis]  # (B, T, 1)
    return labels, np.exp((tops - tops[..., :1]) * slopes[:, np.newaxis]) / totals


def _first_from(tops: FloatArray, by_class: FloatArray) -> NDArray[np.uint8]:
    """Return the first class (B, T) of each task that is not below its largest value (B, T)."""
    labels = (by_class < tops[:, np.newaxis]).view(np.uint8)
    labels *= 255  # where it is below
    labels |= np.arange(by_class.shape[1], dtype=np.uint8)[:, np.newaxis]
    first: NDArray[np.uint8] = labels.min(axis=1)
    return first


@dataclass(frozen=True)
class _Stack:
    """Class features of T tasks with at most W classes."""

    places: IntArray  # (T,) indices of the tasks
    matrix: FloatArray  # (T * W, E); (W * T, E) if they lie across
    padding: FloatArray | None  # for each row of the matrix, far below zero if it is no class
    slopes: FloatArray  # (T,) logit scale / temperature
    unknown_below: FloatArray  # (T,)
    across: bool

    @cached_property
    def columns(self) -> slice | IntArray:
        """Places of the tasks as an index; assigning to a slice is faster."""
        first, n = int(self.places[0]), len(self.places)
        in_a_row = bool((self.places == np.arange(first, first + n)).all())
        return slice(first, first + n) if in_a_row else self.places


def _stacked(tasks: Sequence[Task], logit_scale: float, *, across: int) -> list[_Stack]:
    """Stack tasks whose class counts round up to the same power of two, of one pass each.

    Args:
        across: tasks of at most so many classes lie across, where they are many.
    """
    groups: dict[tuple[int, bytes | None], list[int]] = {}
    for place, task in enumerate(tasks):
        if task.label_scores is None:
            width = 1 << max(0, len(task.class_names) - 1).bit_length()
            of_pass = None if task.image_rows is None else task.image_rows.digest
            groups.setdefault((width, of_pass), []).append(place)
    stacks = []
    for places in groups.values():
        width = max(len(tasks[place].class_names) for place in places)
        per_stack = max(1, _MAX_COLUMNS // width)
        for start in range(0, len(places), per_stack):
            own = places[start : start + per_stack]
            stacks.append(_stack(tasks, own, width, logit_scale, across=width <= across))
    return stacks


def _stack(
    tasks: Sequence[Task], places: list[int], width: int, logit_scale: float, *, across: bool
) -> _Stack:
    of = [tasks[place] for place in places]
    across = across and len(of) >= width  # else the tasks are too few to be a vector
    embed_dim = of[0].class_features.shape[1]
    if len(of) == 1:
        matrix, padding = of[0].class_features, None
    else:
        stacked = np.zeros((len(of), width, embed_dim), dtype=np.float32)
        below = np.zeros((len(of), width), dtype=np.float32)
        for index, task in enumerate(of):
            stacked[index, : len(task.class_names)] = task.class_features
            below[index, len(task.class_names) :] = _NO_CLASS
        if across:
            stacked, below = stacked.swapaxes(0, 1), below.T
        matrix = stacked.reshape(-1, embed_dim)
        padding = below.reshape(-1) if below.any() else None
    temperatures = np.array([task.temperature for task in of], dtype=np.float32)
    return _Stack(
        np.array(places, dtype=np.int64),
        matrix,
        padding,
        np.float32(logit_scale) / temperatures,
        np.array([task.unknown_below for task in of], dtype=np.float32),
        across,
    )


def _similarities(features: FloatArray, sketch: FloatArray) -> FloatArray:
    """Return cosines (N,) to the nearest direction, block by block."""
    rows = max(_MIN_ROWS, _BLOCK_LOGITS // len(sketch))
    found = np.empty(len(features), dtype=np.float32)
    for start in range(0, len(features), rows):
        found[start : start + rows] = (features[start : start + rows] @ sketch.T).max(axis=1)
    return found
