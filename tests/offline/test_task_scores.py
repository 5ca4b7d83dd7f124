"""Stacked matrix products say what the service says, task by task and image by image."""

import numpy as np
import pytest

from prompt_serve.offline.columns import ScoreColumns
from prompt_serve.offline.score_job import images_per_table
from prompt_serve.offline.task_scores import TaskScorer
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.scoring import LabelScores, unit
from prompt_serve.tasks.predictions import NamedTasks, predictions_by_image
from prompt_serve.tasks.task import Task
from prompt_serve.types import FloatArray

pytest.importorskip("pyarrow")

E = 16
SCALE = 100.0


def rows(rng: np.random.Generator, n: int) -> FloatArray:
    return unit(rng.standard_normal((n, E)).astype(np.float32))


def task(rng: np.random.Generator, n_classes: int, kind: str, version: str) -> Task:
    names = tuple(f"class {index} of {n_classes}" for index in range(n_classes))
    features = rows(rng, n_classes)
    if kind == "labels":
        scores = LabelScores(
            slopes=rng.uniform(1, 9, n_classes).astype(np.float32),
            offsets=rng.normal(size=n_classes).astype(np.float32),
            thresholds=rng.uniform(0.1, 0.9, n_classes).astype(np.float32),
        )
        return Task(
            version=version, class_names=names, class_features=features, label_scores=scores
        )
    return Task(
        version=version,
        class_names=names,
        class_features=features,
        temperature=float(rng.uniform(0.3, 30)) if kind == "warm" else 1.0,
        unknown_below=0.9 if kind == "unknown" else 0.0,
        sketch=rows(rng, 3) if kind == "sketch" else None,
        unlike_below=0.2 if kind == "sketch" else -1.0,
    )


KINDS = ("plain", "warm", "unknown", "sketch", "labels")
COUNTS = {
    "one class": [1],
    "equal counts": [8] * 6,
    "counts of one power of two": [5, 6, 7, 8, 5],
    "all sizes": [1, 2, 3, 9, 33, 64, 65, 200],
    "many small ones": [2] * 300,
    "as many as they have classes": [10] * 13,
    "many of ten": [10] * 60,
    "many of few": [n % 13 + 1 for n in range(200)],
    "many of sixty-four": [64, 50, 33] * 30,
    "many of sixty-five": [65] * 90,
    "one large one": [20_000],
}


@pytest.mark.parametrize("top_k", [1, 2, 5, 40])
@pytest.mark.parametrize("counts", list(COUNTS))
def test_rows_are_the_predictions_of_the_service(counts: str, top_k: int) -> None:
    rng = np.random.default_rng(len(counts) + top_k)
    tasks: NamedTasks = [
        (f"task-{i}", task(rng, n, KINDS[i % len(KINDS)], f"{i:064x}"))
        for i, n in enumerate(COUNTS[counts])
    ]
    images = rows(rng, 5 if sum(COUNTS[counts]) > 10_000 else 41)
    scorer = TaskScorer(tasks, logit_scale=SCALE, top_k=top_k, threads=2)
    errors = {3: ("image-invalid", "no image")}

    table = ScoreColumns(scorer).table(
        [f"{i}.png" for i in range(len(images))], scorer([images] * len(tasks)), errors
    )

    expected = predictions_by_image(list(images), tasks, top_k, SCALE)
    found = table.to_pylist()
    assert len(found) == len(images) * len(tasks)
    for index, row in enumerate(found):
        image, place = divmod(index, len(tasks))
        own = expected[image][place]
        assert (row["source"], row["task"]) == (f"{image}.png", tasks[place][0])
        if image == 3:
            assert (row["error_code"], row["error"]) == errors[3]
            assert row["version"] is row["class_name"] is row["labels"] is row["unknown"] is None
            assert row["classes"] == []
            continue
        assert (row["version"], row["labels"]) == (own.version, own.labels)
        assert row["unknown"] == own.unknown
        assert [one["class_name"] for one in row["classes"]] == [c.class_name for c in own.classes]
        assert [one["probability"] for one in row["classes"]] == pytest.approx(
            [c.probability for c in own.classes], abs=1e-5
        )
        assert row["class_name"] == own.classes[0].class_name


@pytest.mark.parametrize("n_tasks", [1, 3, 40])
@pytest.mark.parametrize("n_classes", [2, 3, 10, 33, 64])
def test_of_equal_classes_the_first_is_the_best(n_classes: int, n_tasks: int) -> None:
    rng = np.random.default_rng(n_classes)

    def exact(n: int) -> FloatArray:
        """Return vectors of unit length whose products are exact in any order."""
        return rng.choice([-0.25, 0.25], (n, E)).astype(np.float32)

    images = exact(50)
    tasks: NamedTasks = [
        (
            f"task-{index}",
            Task(
                version=f"{index:064x}",
                class_names=tuple(map(str, range(n_classes))),
                class_features=exact(3)[rng.integers(0, 3, n_classes)],
            ),
        )
        for index in range(n_tasks)
    ]

    scores = TaskScorer(tasks, logit_scale=SCALE, top_k=1)([images] * n_tasks)

    for place, (_, one) in enumerate(tasks):
        best = (images @ one.class_features.T).argmax(axis=1)
        assert scores.labels[:, place, 0].tolist() == best.tolist()


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 5000])
def test_blocks_of_any_number_of_images_are_whole(n: int) -> None:
    rng = np.random.default_rng(n)
    tasks: NamedTasks = [("a", task(rng, 1000, "plain", "0" * 64))]
    images = rows(rng, n)

    scores = TaskScorer(tasks, logit_scale=SCALE, top_k=1, threads=3)([images])

    # An oracle in double precision, which does not overflow here.
    logits = SCALE * images.astype(np.float64) @ tasks[0][1].class_features.T.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    expected = weights / weights.sum(axis=1, keepdims=True)
    assert scores.labels[:, 0, 0].tolist() == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(
        scores.probabilities[:, 0, 0], expected.max(axis=1, initial=0.0), atol=1e-5
    )


def test_tasks_of_one_image_prompt_are_scored_by_its_features() -> None:
    rng = np.random.default_rng(0)
    nothing = np.zeros((1, 4), np.float32)
    rows_of = [
        ImageRows(entering=nothing + i, block=0, keys=(nothing,), values=(nothing,))
        for i in range(3)
    ]
    tasks: NamedTasks = [
        (
            f"task-{i}",
            Task(
                version=str(i),
                class_names=("a", "b"),
                class_features=rows(rng, 2),
                image_rows=None if i % 4 == 3 else rows_of[i % 4],
            ),
        )
        for i in range(8)
    ]
    of_pass = [rows(rng, 6) for _ in range(4)]

    scores = TaskScorer(tasks, logit_scale=SCALE, top_k=2)([of_pass[i % 4] for i in range(8)])

    for i, named in enumerate(tasks):
        alone = predictions_by_image(list(of_pass[i % 4]), [named], 2, SCALE)
        found = scores.probabilities[:, i]
        expected = [[c.probability for c in own.classes] for [own] in alone]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5, 40, 1000, 10**7])
@pytest.mark.parametrize("n_tasks", [1, 3, 1000, 70_000, 10**7])
def test_what_is_scored_at_once_fits_into_memory(n_tasks: int, k: int) -> None:
    images = images_per_table(n_tasks, k)

    assert images >= 1
    # Or one image, which cannot be divided.
    assert images == 1 or images * n_tasks * k <= 2**21
    assert images == 1 or images * n_tasks <= 2**19
    assert (images + 1) * n_tasks > min(2**19, 2**21 // k)
