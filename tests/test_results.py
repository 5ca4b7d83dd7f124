"""Results as frames and as tables in notebooks; names and paths are data of users."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import prompt_serve.results
from prompt_serve.errors import DependencyMissing
from prompt_serve.results import ImageScores, ScoredImage, ScoreList, ScoreStream
from prompt_serve.schemas import ClassScore, ImageResult, Problem, TaskPrediction
from tests.parsed_page import Page

ODD_NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    'it\'s "quoted"',
    "</td></tr></table>",
    "&lt;b&gt; & &amp;",
    "café, Œuvre, 猫, 🐈",
    "two\nlines",
    " ",
]


def row(index: int = 0, source: str = "a.jpg", **fields: Any) -> ScoredImage:
    classes = tuple(
        ClassScore(class_name=name, label=label, probability=probability, logit=logit)
        for label, (name, probability, logit) in enumerate(
            (("cat", 0.75, 20.0), ("dog", 0.25, 9.0))
        )
    )
    defaults = {"task": "pets", "version": "ab" * 32, "classes": classes, "error": None}
    return ScoredImage(index=index, source=source, **{**defaults, **fields})


def failed(index: int) -> ScoredImage:
    problem = Problem(title="Unprocessable", status=422, detail="no image", code="image-invalid")
    return row(index, version=None, classes=(), error=problem)


ROWS = [row(0, similarity=0.5), row(1, labels=("cat", "dog")), row(2, labels=()), failed(3)]
COLUMNS = [
    "source", "task", "class_name", "probability", "unknown", "labels", "similarity", "version",
    "error",
]  # fmt: skip


def list_of(rows: list[ScoredImage]) -> ScoreList:
    return ScoreList(tuple(ImageScores(one.source, (one,)) for one in rows))


def stream_of(rows: list[ScoredImage]) -> ScoreStream:
    return ScoreStream(one for one in rows)


def image_of(rows: list[ScoredImage]) -> ImageScores:
    return ImageScores("a.jpg", tuple(rows))


@pytest.mark.parametrize("package", ["pandas", "polars"])
@pytest.mark.parametrize("form", [list_of, stream_of, image_of])
@pytest.mark.parametrize("n", [4, 3, 1, 0])
def test_a_frame_has_a_row_per_image_and_task(
    package: str, form: Callable[[list[ScoredImage]], Any], n: int
) -> None:
    pytest.importorskip(package)

    frame = getattr(form(ROWS[:n]), f"to_{package}")()

    assert list(frame.columns) == COLUMNS
    expected = [
        ["a.jpg", "pets", "cat", 0.75, False, None, 0.5, "ab" * 32, None],
        ["a.jpg", "pets", "cat", 0.75, False, ["cat", "dog"], None, "ab" * 32, None],
        ["a.jpg", "pets", "cat", 0.75, False, [], None, "ab" * 32, None],
        ["a.jpg", "pets", None, None, False, None, None, None, "no image"],
    ][:n]
    assert values_of(frame) == expected


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_frame_is_made_of_what_classify_returns(package: str) -> None:
    pytest.importorskip(package)
    prediction = TaskPrediction(task="pets", version="ab" * 32, classes=list(ROWS[0].classes))
    results = [
        ImageResult(index=0, predictions=[prediction, prediction]),
        ImageResult(index=1, error=failed(1).error),
    ]

    frame = getattr(prompt_serve.results, f"to_{package}")(results)

    answered = ["", "pets", "cat", 0.75, False, None, None, "ab" * 32, None]
    refused = ["", "", None, None, False, None, None, None, "no image"]
    assert values_of(frame) == [answered, answered, refused]


def values_of(frame: Any) -> list[list[Any]]:
    """The cells of a frame of either package; missing values are None."""
    if hasattr(frame, "rows"):
        return [list(cells) for cells in frame.rows()]
    return [[None if cell != cell else cell for cell in cells] for cells in frame.values.tolist()]


@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_polars_frame_has_the_same_types_with_and_without_rows(n: int) -> None:
    polars = pytest.importorskip("polars")

    schema = list_of(ROWS[:n]).to_polars().schema

    assert schema == {
        **dict.fromkeys(COLUMNS, polars.String),
        "probability": polars.Float64,
        "similarity": polars.Float64,
        "unknown": polars.Boolean,
        "labels": polars.List(polars.String),
    }


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_one_prediction_is_a_frame_of_its_classes(package: str) -> None:
    pytest.importorskip(package)

    frame = getattr(ROWS[0], f"to_{package}")()

    assert list(frame.columns) == ["class_name", "label", "probability", "logit"]
    assert values_of(frame) == [["cat", 0, 0.75, 20.0], ["dog", 1, 0.25, 9.0]]


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(DependencyMissing, match=f"pip install {package}"):
        getattr(list_of(ROWS), f"to_{package}")()


def test_a_stream_makes_its_rows_one_by_one_and_can_be_closed() -> None:
    made, ended = [], []

    def rows() -> Iterator[Any]:
        try:
            for index in range(10):
                made.append(index)
                yield row(index)
        finally:
            ended.append(True)

    stream = ScoreStream(rows())  # type: ignore[arg-type]  # an iterator of a generator function

    assert (next(stream).index, next(stream).index, made, ended) == (0, 1, [0, 1], [])
    stream.close()
    assert (list(stream), ended) == ([], [True])


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_of_users_are_text_in_a_notebook(name: str) -> None:
    classes = (ClassScore(class_name=name, label=0, probability=0.5, logit=1.0),)
    problem = Problem(title="", status=422, detail=name, code="image-invalid")
    by_class = row(source=name, task=name, classes=classes)
    by_label = row(source=name, classes=classes, labels=(name, name))
    bad = row(source=name, classes=(), error=problem)

    shown = Page(list_of([by_class, by_label, bad])._repr_html_())

    assert {one.tag for one in shown.elements} == {"table", "thead", "tbody", "tr", "th", "td"}
    assert [one.text for one in shown.all("td")] == [
        *(name, name, name, "50.0%"),
        *(name, "pets", f"{name}, {name}", "50.0%"),
        *(name, "pets", name, ""),
    ]


@pytest.mark.parametrize(
    ("n", "rest"), [(100, ""), (101, "1 more row<"), (2500, "2,400 more rows")]
)
def test_a_long_table_says_how_many_rows_it_leaves_out(n: int, rest: str) -> None:
    shown = list_of([row(index) for index in range(n)])._repr_html_()

    assert shown.count("<tr>") == 101
    assert rest in shown
    assert ("more row" in shown) == bool(rest)
