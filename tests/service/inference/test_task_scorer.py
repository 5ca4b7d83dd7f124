"""Tasks in chunks: deadlines between two of them, the best of all, and what stays in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.errors import DeadlineExceeded, ImageInvalid
from prompt_serve.prompts.prompt_file import from_bytes
from prompt_serve.schemas import ClassifyAnswer, ClassScore, TaskPrediction
from prompt_serve.service.core import Core
from prompt_serve.service.inference.predictions import BestTasks
from prompt_serve.service.inference.requests import (
    EmbeddingItem,
    TaskQuery,
    TaskSelector,
)
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.settings import Settings
from prompt_serve.service.storage.registry import NewTask
from tests.service.many_tasks import task_files

N_TASKS = 200
EVERYTHING = TaskSelector(["*"])


@pytest.fixture(scope="module")
def core(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    """A service without HTTP that keeps no task in memory."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        bundle=tiny_bundle,
        inference_threads=1,
        decode_threads=1,
        feature_cache_bytes=0,
    )
    core = Core(settings)
    names = [f"task-{n:03}" for n in range(N_TASKS)]
    core.registry.put_all(
        [
            NewTask(name=name, data=data, prompt=from_bytes(data), features=None)
            for name, data in task_files(core.bundle.manifest, names)
        ]
    )
    yield core
    core.close()


def embeddings(core: Core, n: int) -> list[EmbeddingItem]:
    rows = np.random.default_rng(0).standard_normal((n, core.embedding_width)).astype(np.float32)
    return [EmbeddingItem(row / np.linalg.norm(row)) for row in rows]


async def lines(core: Core, n: int, query: TaskQuery, deadline: Deadline) -> AsyncIterator[bytes]:
    return await core.classifier.score_lines(embeddings(core, n), query, None, deadline)


@pytest.mark.parametrize("n_chunks", [0, 1, 2])
@pytest.mark.parametrize("n_images", [1, 10])
def test_a_deadline_ends_the_answer_between_two_chunks(
    core: Core, n_images: int, n_chunks: int
) -> None:
    async def read() -> int:
        deadline = Deadline.after(30)
        found = 0
        taken = await lines(core, n_images, TaskQuery(EVERYTHING), deadline)
        for _ in range(n_chunks):
            found += (await anext(taken)).count(b"\n")
        # The next chunk begins later than the deadline.
        object.__setattr__(deadline, "at", time.monotonic())
        message = f"after {found // n_images} of {N_TASKS} tasks"
        with pytest.raises(DeadlineExceeded, match=message):
            await anext(taken)
        return found

    assert asyncio.run(read()) == n_images * n_chunks * min(64, 2000 // (n_images * 5))


def test_the_best_tasks_are_all_or_an_error(core: Core) -> None:
    query = TaskQuery(EVERYTHING, top_tasks=3)
    with pytest.raises(DeadlineExceeded, match=f"after 0 of {N_TASKS} tasks"):
        asyncio.run(core.classifier.score(embeddings(core, 2), query, None, Deadline.after(0)))


def test_a_task_whose_file_was_removed_meanwhile_is_answered_at_its_new_version(
    core: Core,
) -> None:
    async def read() -> tuple[str, str]:
        taken = await lines(core, 1, TaskQuery(EVERYTHING), Deadline.after(60))
        last = f"task-{N_TASKS - 1:03}"
        old = core.registry.versions([last])[last]
        ((_, data),) = task_files(core.bundle.manifest, ["another"])
        core.store.upload(last, data)
        core.editor.delete_version(old)
        text = b"".join([chunk async for chunk in taken]).decode()
        (line,) = [line for line in text.splitlines() if f'"{last}"' in line]
        assert '"complete":true' in text
        return line, core.registry.versions([last])[last]

    line, version = asyncio.run(read())
    assert version in line


def prediction(task: str, probability: float, *, unknown: bool = False) -> TaskPrediction:
    best = ClassScore(class_name="a", label=0, probability=probability, logit=1.0)
    return TaskPrediction(task=task, version="0", unknown=unknown, classes=[best])


@pytest.mark.parametrize("per_chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_unknown_comes_last_then_the_probability_counts_then_the_order(
    k: int, per_chunk: int
) -> None:
    tasks = [
        prediction("a", 0.5),
        prediction("b", 0.99, unknown=True),
        prediction("c", 0.7),
        prediction("d", 0.7),
        prediction("e", 0.2),
        prediction("f", 1.0, unknown=True),
        prediction("g", 0.9),
    ]
    best = BestTasks(2, k)
    for start in range(0, len(tasks), per_chunk):
        chunk = tasks[start : start + per_chunk]
        best.add([chunk, chunk[:1]])
    assert [p.task for p in best.by_image[0]] == list("gcdaefb")[:k]


@pytest.mark.parametrize(
    ("n", "tasks", "top_k"), [(1, 1, 1), (3, 2, 4), (300, 1, 1), (90, 8, 4), (700, 3, 1)]
)
def test_an_answer_made_in_chunks_is_that_of_the_embeddings_alone(
    core: Core, n: int, tasks: int, top_k: int
) -> None:
    query = TaskQuery(TaskSelector([f"task-{i:03}" for i in range(tasks)]), top_k=top_k)
    items = embeddings(core, n)
    items[n // 2] = EmbeddingItem(ImageInvalid("It is empty.")) if n > 1 else items[0]

    def answer(some: list[EmbeddingItem]) -> ClassifyAnswer:
        made = core.classifier.score(some, query, None, Deadline.after(60))
        return ClassifyAnswer.model_validate_json(asyncio.run(made))

    together = answer(items)
    assert [result.index for result in together.results] == list(range(n))
    for index in {0, 1, n // 3, n // 2, n - 1} & set(range(n)):
        result = together.results[index]
        if result.error is not None:
            assert (index, result.predictions) == (n // 2, None)
            continue
        (alone,) = answer([items[index]]).results
        assert result.predictions is not None
        assert alone.predictions is not None
        for one, other in zip(result.predictions, alone.predictions, strict=True):
            assert (one.task, one.version, len(one.classes)) == (
                other.task,
                other.version,
                len(other.classes),
            )
            for a, b in zip(one.classes, other.classes, strict=True):
                assert (a.class_name, a.label) == (b.class_name, b.label)
                assert a.probability == pytest.approx(b.probability, abs=1e-5)


def test_a_json_answer_ends_at_its_deadline_between_two_chunks(core: Core) -> None:
    query = TaskQuery(TaskSelector(["task-000", "task-001"]), top_k=4)
    deadline = Deadline.after(0.01)  # the answer takes 0.3 s
    with (
        request_scope(RequestContext(deadline=deadline)),
        pytest.raises(DeadlineExceeded, match=r"turn|running"),
    ):
        asyncio.run(core.classifier.score(embeddings(core, 4000), query, None, deadline))
