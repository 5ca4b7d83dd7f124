"""Scores as Arrow tables: one row per image and task, the columns of ``prompt-serve score``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_serve.offline.task_scores import TaskScorer, TaskScores
from prompt_serve.types import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    import pyarrow as pa

Errors = Mapping[int, tuple[str, str]]  # code and text, by index of the image


class ScoreColumns:
    """Makes tables of the scores of one scorer.

    Args:
        scorer: its tasks name the rows and classes.
    """

    def __init__(self, scorer: TaskScorer) -> None:
        import pyarrow as pa

        tasks = [task for _, task in scorer.tasks]
        names = np.array([name for task in tasks for name in task.class_names], dtype=object)
        known, places = np.unique(names, return_inverse=True)
        self._class_names = pa.array(known, pa.string())
        self._class_places = places.astype(np.int32)
        sizes = [len(task.class_names) for task in tasks]
        self._sizes = np.array(sizes, dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self._task_names = pa.array([name for name, _ in scorer.tasks], pa.string())
        self._versions = pa.array([task.version for task in tasks], pa.string())
        self._k = scorer.k

    def table(self, sources: Sequence[str], scores: TaskScores, errors: Errors) -> "pa.Table":
        """Return N x T rows, image by image.

        Args:
            sources: names of the N images.
            scores: of these images; those of images with an error are not read.
            errors: of some images.
        """
        import pyarrow as pa

        n, n_tasks = len(sources), len(self._sizes)
        failed = np.zeros(n, dtype=np.bool_)
        failed[list(errors)] = True
        no_score = np.repeat(failed, n_tasks) if errors else None
        task = np.tile(np.arange(n_tasks, dtype=np.int32), n)
        # Of a task with fewer than k classes some are not of this task, and left out below.
        places = self._class_places.take(
            scores.labels + self._offsets[:, np.newaxis], mode="clip"
        )  # (N, T, k)
        best = np.ascontiguousarray(places[..., 0]).reshape(-1)
        return pa.Table.from_arrays(
            [
                self._sources(sources),
                pa.DictionaryArray.from_arrays(task, self._task_names),
                pa.DictionaryArray.from_arrays(
                    pa.array(task, pa.int32(), mask=no_score), self._versions
                ),
                pa.DictionaryArray.from_arrays(
                    pa.array(best, pa.int32(), mask=no_score), self._class_names
                ),
                pa.array(
                    np.ascontiguousarray(scores.probabilities[..., 0]).reshape(-1), mask=no_score
                ),
                pa.array(scores.unknown.reshape(-1), mask=no_score),
                self._labels(scores, failed),
                self._classes(places, scores.probabilities, no_score),
                *_error_columns(errors, n, n_tasks),
            ],
            schema=self.schema,
        )

    @property
    def schema(self) -> "pa.Schema":
        """Schema of the tables: ``score_schema`` with dictionaries of the texts that repeat."""
        import pyarrow as pa

        text, listed = pa.string(), pa.dictionary(pa.int32(), pa.string())
        return _schema(text if len(self._sizes) == 1 else listed, listed)

    def _sources(self, sources: Sequence[str]) -> "pa.Array[Any]":
        import pyarrow as pa

        names = pa.array([_utf8(source) for source in sources], pa.string())
        n_tasks = len(self._sizes)
        if n_tasks == 1:
            return names
        image = np.repeat(np.arange(len(sources), dtype=np.int32), n_tasks)
        return pa.DictionaryArray.from_arrays(image, names)

    def _classes(
        self, places: "np.ndarray[Any, Any]", probabilities: FloatArray, no_score: BoolArray | None
    ) -> "pa.Array[Any]":
        """Return the best classes of every row; a task may have fewer than k."""
        import pyarrow as pa

        counts = np.tile(np.minimum(self._sizes, self._k), len(places))
        if no_score is not None:
            counts[no_score] = 0
        places, probabilities = places.reshape(-1), probabilities.reshape(-1)
        if counts.sum() < len(places):
            taken = (np.arange(self._k) < counts[:, np.newaxis]).reshape(-1)
            places, probabilities = places[taken], probabilities[taken]
        values = pa.StructArray.from_arrays(
            [
                pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), self._class_names),
                pa.array(probabilities),
            ],
            ["class_name", "probability"],
        )
        return pa.ListArray.from_arrays(pa.array(_offsets(counts)), values)

    def _labels(self, scores: TaskScores, failed: BoolArray) -> "pa.Array[Any]":
        """Return the labels of multi-label tasks; null for other tasks and failed images."""
        import pyarrow as pa

        n, n_tasks = len(failed), len(self._sizes)
        if not scores.of_labels:
            return pa.nulls(n * n_tasks, pa.list_(pa.string()))
        lengths = np.zeros((n, n_tasks), dtype=np.int64)
        is_null = np.ones((n, n_tasks), dtype=np.bool_)
        for place, of_task in scores.of_labels.items():
            lengths[:, place] = np.where(failed, 0, of_task.lengths)
            is_null[:, place] = failed
        offsets = _offsets(lengths.reshape(-1))
        places = np.empty(offsets[-1], dtype=np.int32)
        for place, of_task in scores.of_labels.items():
            kept = np.repeat(~failed, of_task.lengths)
            own = self._class_places[of_task.labels[kept] + self._offsets[place]]
            starts = offsets[:-1].reshape(n, n_tasks)[:, place]
            places[_ranges(starts, lengths[:, place])] = own
        return pa.ListArray.from_arrays(
            pa.array(offsets),
            self._class_names.take(pa.array(places, pa.int32())),
            mask=pa.array(is_null.reshape(-1)),
        )


def score_schema() -> "pa.Schema":
    """Return the schema of scores, as readers find them."""
    import pyarrow as pa

    return _schema(pa.string(), pa.string())


def _schema(source: "pa.DataType", class_name: "pa.DataType") -> "pa.Schema":
    import pyarrow as pa

    listed = pa.dictionary(pa.int32(), pa.string())
    score = pa.struct([("class_name", class_name), ("probability", pa.float32())])
    return pa.schema(
        [
            ("source", source),
            ("task", listed),
            ("version", listed),
            ("class_name", listed),
            ("probability", pa.float32()),
            ("unknown", pa.bool_()),
            ("labels", pa.list_(pa.string())),
            ("classes", pa.list_(score)),
            ("error_code", pa.string()),
            ("error", pa.string()),
        ]
    )


def _error_columns(errors: Errors, n: int, n_tasks: int) -> "list[pa.Array[Any]]":
    import pyarrow as pa

    if not errors:
        return [pa.nulls(n * n_tasks, pa.string()) for _ in range(2)]
    rows = [errors.get(index, (None, None)) for index in range(n)]
    columns = [pa.array([row[part] for row in rows], pa.string()) for part in range(2)]
    return [column.take(_repeated(n, n_tasks)) for column in columns]


def _repeated(n: int, times: int) -> "pa.Array[Any]":
    import pyarrow as pa

    return pa.array(np.repeat(np.arange(n, dtype=np.int64), times))


def _offsets(lengths: IntArray) -> "np.ndarray[Any, np.dtype[np.int32]]":
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _ranges(starts: Any, lengths: IntArray) -> IntArray:
    """Return the numbers of several ranges, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def _utf8(name: str) -> str:
    """Return a path as text that Arrow takes; bytes of other encodings are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
