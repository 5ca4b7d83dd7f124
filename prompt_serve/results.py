"""Results of scoring: what a task says about an image, from a service or from this process."""

import html
import importlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from prompt_serve.errors import (
    ConfigInvalid,
    DependencyMissing,
    TaskNotFound,
    counted,
    did_you_mean,
)
from prompt_serve.schemas import ClassScore, ImageResult, Problem

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_SHOWN_ROWS = 100  # in a notebook
# Columns of a frame, and the Python type of their values.
_ROW_COLUMNS: dict[str, Any] = {
    "source": str,
    "task": str,
    "class_name": str,
    "probability": float,
    "unknown": bool,
    "labels": list[str],
    "similarity": float,
    "version": str,
    "error": str,
}
_CLASS_COLUMNS: dict[str, Any] = {
    "class_name": str,
    "label": int,
    "probability": float,
    "logit": float,
}


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """One row: the prediction of one task for one image, or an error."""

    index: int  # position of the image in the stream, from 0
    source: str  # path as given; empty for bytes and images in memory
    task: str
    version: str | None  # sha256 of the prompt file that made the prediction
    classes: tuple[ClassScore, ...]  # best first; empty for an error
    error: Problem | None
    unknown: bool = False  # the image shows none of the classes
    labels: tuple[str, ...] | None = None  # of a multi-label task, best first; None for others
    similarity: float | None = None  # cosine to the training images; None without a sketch of them

    @property
    def class_name(self) -> str | None:
        """Best class, even if the image is ``unknown``; None for an error."""
        return self.classes[0].class_name if self.classes else None

    @property
    def probability(self) -> float | None:
        """Probability of the best class; None for an error."""
        return self.classes[0].probability if self.classes else None

    def to_pandas(self) -> "pd.DataFrame":
        """Return a frame with one row per class, best first; needs pandas."""
        return _pandas_frame(_class_cells(self), _CLASS_COLUMNS)

    def to_polars(self) -> "pl.DataFrame":
        """Return a frame with one row per class, best first; needs polars."""
        return _polars_frame(_class_cells(self), _CLASS_COLUMNS)

    def _repr_html_(self) -> str:
        return _html_of_rows([self])


@dataclass(frozen=True)
class ImageScores:
    """Predictions of all tasks for one image, or an error.

    With one task, its prediction is read directly: ``scores.class_name``. With several, it is
    picked by the task's name: ``scores["pets"].class_name``.
    """

    source: str
    rows: tuple[ScoredImage, ...]  # one per task

    def __getitem__(self, task: str) -> ScoredImage:
        """Return the prediction of a task.

        Raises:
            TaskNotFound: there is no such task.
        """
        names = tuple(row.task for row in self.rows)
        if task not in names:
            raise TaskNotFound(
                f"No prompt is named {task!r}; there are {', '.join(names)}."
                f"{did_you_mean(task, names)}",
                name=task,
                loaded=names,
            )
        return self.rows[names.index(task)]

    @property
    def only(self) -> ScoredImage:
        """Prediction of the only task.

        Raises:
            ConfigInvalid: there are several.
        """
        if len(self.rows) > 1:
            names = [row.task for row in self.rows]
            raise ConfigInvalid(
                f"There are predictions of {len(names)} prompts; name one: "
                f"scores[{names[0]!r}]. They are {', '.join(names)}."
            )
        return self.rows[0]

    @property
    def class_name(self) -> str | None:
        """Best class of the only task; None for an error."""
        return self.only.class_name

    @property
    def probability(self) -> float | None:
        """Probability of this class; None for an error."""
        return self.only.probability

    @property
    def classes(self) -> tuple[ClassScore, ...]:
        """Classes of the only task, best first."""
        return self.only.classes

    @property
    def unknown(self) -> bool:
        """True if the image shows none of the classes of the only task."""
        return self.only.unknown

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Labels that the image has, if the only task is a multi-label one."""
        return self.only.labels

    @property
    def error(self) -> Problem | None:
        """Reason why the image was not scored."""
        return self.rows[0].error

    def to_pandas(self) -> "pd.DataFrame":
        """Return a frame with one row per task; needs pandas."""
        return to_pandas(self.rows)

    def to_polars(self) -> "pl.DataFrame":
        """Return a frame with one row per task; needs polars."""
        return to_polars(self.rows)

    def _repr_html_(self) -> str:
        return _html_of_rows(self.rows)


@dataclass(frozen=True)
class ScoreList(Sequence[ImageScores]):
    """Predictions for several images, in their order."""

    images: tuple[ImageScores, ...]

    @overload
    def __getitem__(self, index: int) -> ImageScores: ...
    @overload
    def __getitem__(self, index: slice) -> "ScoreList": ...
    def __getitem__(self, index: int | slice) -> "ImageScores | ScoreList":
        if isinstance(index, slice):
            return ScoreList(self.images[index])
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def rows(self) -> Iterator[ScoredImage]:
        """One row per image and task, image by image."""
        return (row for image in self.images for row in image.rows)

    def to_pandas(self) -> "pd.DataFrame":
        """Return a frame with one row per image and task; needs pandas."""
        return to_pandas(self.rows)

    def to_polars(self) -> "pl.DataFrame":
        """Return a frame with one row per image and task; needs polars."""
        return to_polars(self.rows)

    def _repr_html_(self) -> str:
        return _html_of_rows(self.rows)


class ScoreStream(Iterator[ScoredImage]):
    """Rows of a stream of images, in its order, made while they are taken.

    Args:
        rows: generator of the rows.
    """

    def __init__(self, rows: Generator[ScoredImage, None, None]) -> None:
        self._rows = rows

    def __next__(self) -> ScoredImage:
        return next(self._rows)

    def close(self) -> None:
        """Stop; images that were not scored yet are not."""
        self._rows.close()

    def to_pandas(self) -> "pd.DataFrame":
        """Return a frame of the remaining rows; needs pandas."""
        return to_pandas(self)

    def to_polars(self) -> "pl.DataFrame":
        """Return a frame of the remaining rows; needs polars."""
        return to_polars(self)


def scored_rows(
    index: int, source: str, result: ImageResult, selectors: Sequence[str]
) -> list[ScoredImage]:
    """Return one row per prediction of an image; for an error, one for each of ``selectors``."""
    if result.predictions is None:
        return [
            ScoredImage(
                index=index, source=source, task=task, version=None, classes=(), error=result.error
            )
            for task in selectors
        ]
    return [
        ScoredImage(
            index=index,
            source=source,
            task=prediction.task,
            version=prediction.version,
            classes=tuple(prediction.classes),
            error=None,
            unknown=prediction.unknown,
            labels=None if prediction.labels is None else tuple(prediction.labels),
            similarity=prediction.similarity,
        )
        for prediction in result.predictions
    ]


def to_pandas(results: Iterable[ScoredImage | ImageResult]) -> "pd.DataFrame":
    """Return a frame with one row per image and task; needs pandas.

    Args:
        results: rows, or what ``Client.classify`` returns for a list, which has no sources.
    """
    return _pandas_frame(_row_cells(results), _ROW_COLUMNS)


def to_polars(results: Iterable[ScoredImage | ImageResult]) -> "pl.DataFrame":
    """Return a frame as ``to_pandas`` does; needs polars."""
    return _polars_frame(_row_cells(results), _ROW_COLUMNS)


def _row_cells(results: Iterable[ScoredImage | ImageResult]) -> list[dict[str, Any]]:
    rows = (
        row
        for one in results
        for row in (
            scored_rows(one.index, "", one, [""]) if isinstance(one, ImageResult) else [one]
        )
    )
    return [
        {name: getattr(row, name) for name in _ROW_COLUMNS}
        | {
            "labels": None if row.labels is None else list(row.labels),
            "error": row.error and row.error.detail,
        }
        for row in rows
    ]


def _class_cells(row: ScoredImage) -> list[dict[str, Any]]:
    return [score.model_dump() for score in row.classes]


def _pandas_frame(cells: list[dict[str, Any]], columns: dict[str, Any]) -> "pd.DataFrame":
    return _imported("pandas").DataFrame(cells, columns=list(columns))


def _polars_frame(cells: list[dict[str, Any]], columns: dict[str, Any]) -> "pl.DataFrame":
    # Types are named: a column without a value, or a frame without a row, shows none.
    pl = _imported("polars")
    types = {
        name: pl.List(pl.String) if kind == list[str] else kind for name, kind in columns.items()
    }
    return pl.DataFrame(cells, schema=types)


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DependencyMissing(
            f"A frame needs {package}: pip install {package}", missing=package
        ) from error


def html_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a notebook; every text is escaped."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    lines = (
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _html_of_rows(rows: Iterable[ScoredImage]) -> str:
    """Return a table of the first rows, and how many more there are."""
    listed = list(rows)
    shown = html_table(
        ("image", "task", "class", "probability"), map(_html_cells, listed[:_SHOWN_ROWS])
    )
    more = len(listed) - _SHOWN_ROWS
    return f"{shown}<p>and {counted(more, 'more row')}</p>" if more > 0 else shown


def _html_cells(row: ScoredImage) -> tuple[str, str, str, str]:
    if row.error is not None:
        return row.source, row.task, row.error.detail, ""
    answer = row.class_name if row.labels is None else ", ".join(row.labels) or "no label"
    note = " (unknown)" if row.unknown else ""
    return row.source, row.task, f"{answer}{note}", f"{row.probability:.1%}"
