"""Scoring a stream: every image gets its row, in order, despite faults of service and images."""

import asyncio
import gc
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing

import pytest

from prompt_serve.client import AsyncClient, Client
from prompt_serve.client.loop_thread import LoopThread
from prompt_serve.client.scoring import Chunk, chunks_of, in_order, plan_for
from prompt_serve.errors import ServiceUnreachable, TaskNotFound
from prompt_serve.results import ScoredImage
from tests.client.fake_service import Drop, FakeService, numbered_image, problem


def numbers_of(rows: list[ScoredImage]) -> list[str | None]:
    return [row.class_name for row in rows]


def numbered(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def test_rows_come_in_order_whatever_the_service_does(service: FakeService, client: Client) -> None:
    service.behavior.delay_s = lambda: random.uniform(0, 0.05)
    service.behavior.shuffled = True

    rows = list(client.score((numbered_image(i) for i in range(200)), "pets", chunk_size=4))

    assert numbers_of(rows) == numbered(200)
    assert [row.index for row in rows] == list(range(200))
    assert service.behavior.most_in_flight == 4


def test_bad_images_are_rows_and_stop_nothing(service: FakeService, client: Client) -> None:
    rng = random.Random(1)
    bad = set(rng.sample(range(2000), 20))
    images = (b"no image" if i in bad else numbered_image(i) for i in range(2000))

    service.behavior.limits["max_images"] = 64
    rows = list(client.score(images, "pets"))

    assert len(rows) == 2000
    assert {row.index for row in rows if row.error is not None} == bad
    for i, row in enumerate(rows):
        assert row.index == i
        assert row.class_name == (None if i in bad else str(i))
        assert row.probability == (None if i in bad else 0.9)


def test_files_that_cannot_be_read_are_rows_too(client: Client) -> None:
    rows = list(client.score(["/nowhere/a.jpg", numbered_image(3)], "pets"))

    assert rows[0].error is not None
    assert (rows[0].source, rows[0].error.code) == ("/nowhere/a.jpg", "image-invalid")
    assert (rows[1].source, rows[1].class_name) == ("", "3")


def test_a_chunk_of_bad_images_only_keeps_them_apart(client: Client) -> None:
    rows = list(client.score([b"x", b"y", numbered_image(2), b"z"], "pets", chunk_size=2))

    assert [row.error is not None for row in rows] == [True, True, False, True]


def test_rows_of_unknown_images_are_marked(service: FakeService, client: Client) -> None:
    service.behavior.unknown = {1, 2}

    rows = list(client.score([numbered_image(number) for number in range(4)], "pets"))

    assert [row.unknown for row in rows] == [False, True, True, False]
    assert numbers_of(rows) == ["0", "1", "2", "3"]


def test_several_tasks_give_several_rows_per_image(service: FakeService, client: Client) -> None:
    names = [f"task-{i}" for i in range(20)]  # more than the 8 that a request may name
    service.behavior.tasks.update(dict.fromkeys(names, b""))

    rows = list(client.score([numbered_image(1), b"bad"], names))

    assert [(row.index, row.task) for row in rows] == [(i, name) for i in (0, 1) for name in names]
    assert [row.error is not None for row in rows] == [False] * 20 + [True] * 20


def test_requests_keep_the_limits_of_the_service(service: FakeService, client: Client) -> None:
    service.behavior.limits["max_images"] = 3

    assert len(client.classify([numbered_image(i) for i in range(10)], "pets")) == 10
    assert sorted(service.behavior.images_per_request) == [1, 3, 3, 3]


def test_a_plan_fills_at_most_half_of_the_queue(service: FakeService, client: Client) -> None:
    service.behavior.limits["max_queue_images"] = 32

    plan = plan_for(client.info(), concurrency=4)

    assert plan.chunk_size * plan.concurrency <= 32 // 2


@pytest.mark.parametrize(("code", "status"), [("request-too-large", 413), ("internal-error", 500)])
def test_what_fails_as_a_whole_is_split_until_the_culprit_is_alone(
    code: str, status: int, service: FakeService, client: Client
) -> None:
    culprit = numbered_image(5)
    service.behavior.is_refused = lambda images: (
        problem(code, status, "Refused whole.") if culprit in images else None
    )

    rows = list(client.score([numbered_image(i) for i in range(16)], "pets", chunk_size=16))

    assert numbers_of(rows) == [None if i == 5 else str(i) for i in range(16)]
    assert rows[5].error is not None
    assert rows[5].error.detail == "Refused whole."


def test_a_stream_is_consumed_as_its_rows_are_taken(client: Client) -> None:
    taken = 0

    def images() -> Iterator[bytes]:
        nonlocal taken
        for i in range(300):
            taken += 1
            yield numbered_image(i)

    rows = client.score(images(), "pets", chunk_size=5)
    ahead = []
    for handed_out, row in enumerate(rows):
        assert row.class_name == str(handed_out)
        ahead.append(taken - handed_out)
    assert len(ahead) == 300
    assert max(ahead) <= (4 + 2) * 5  # the window has concurrency + 2 chunks


def test_a_stream_runs_in_the_thread_of_its_consumer(client: Client) -> None:
    threads = set()

    def images() -> Iterator[bytes]:
        threads.add(threading.current_thread())
        yield numbered_image(1)

    list(client.score(images(), "pets"))
    client.classify(images(), "pets")

    assert threads == {threading.current_thread()}


def test_dropped_connections_and_refusals_cost_no_row(service: FakeService, client: Client) -> None:
    client.info()
    service.behavior.faults.extend(
        [Drop(), problem("overloaded", 429, retry_after_s=0.1), Drop(), problem("not-ready", 503)]
    )

    rows = list(client.score([numbered_image(i) for i in range(100)], "pets", chunk_size=10))

    assert numbers_of(rows) == numbered(100)


def test_scoring_lives_through_a_restart_of_the_service(
    service: FakeService, client: Client
) -> None:
    service.behavior.delay_s = lambda: 0.02

    def restart() -> None:
        service.stop()
        time.sleep(0.5)
        service.start()

    rows = []
    restarting = threading.Thread(target=restart)
    for row in client.score((numbered_image(i) for i in range(400)), "pets", chunk_size=4):
        rows.append(row)
        if row.index == 50:
            restarting.start()
    restarting.join()

    assert numbers_of(rows) == numbered(400)
    assert not any(row.error for row in rows)


def test_an_unreachable_service_ends_the_run_after_the_finished_rows(
    service: FakeService, client: Client
) -> None:
    images = (numbered_image(i) for i in range(400))
    scored = client.score(images, "pets", chunk_size=4, retry_for_s=0.5)
    rows = [next(scored) for _ in range(51)]
    service.stop()

    with pytest.raises(ServiceUnreachable, match="Cannot reach"):
        rows.extend(scored)

    assert numbers_of(rows) == numbered(len(rows))


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_the_rows_that_were_not_taken_become_a_frame(client: Client, package: str) -> None:
    pytest.importorskip(package)
    images = [numbered_image(number) for number in range(5)]
    rows = client.score(images, "pets", chunk_size=2)
    first = next(rows)

    frame = getattr(rows, f"to_{package}")()

    assert (first.index, len(frame)) == (0, 4)
    assert list(frame["class_name"]) == [row.class_name for row in client.score(images, "pets")][1:]
    assert list(rows) == []


def test_an_unknown_task_ends_the_run(client: Client) -> None:
    with pytest.raises(TaskNotFound):
        list(client.score([numbered_image(1)], "pest"))


def test_an_error_of_the_stream_reaches_its_consumer(client: Client) -> None:
    def images() -> Iterator[bytes]:
        yield numbered_image(1)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(client.score(images(), "pets"))

    assert client.info().precision == "fp32"


def test_no_image_is_no_row(service: FakeService, client: Client) -> None:
    assert list(client.score([], "pets")) == []
    assert client.classify([], "pets") == []
    assert service.behavior.images_per_request == []


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    """Wait for a condition: cancelled work ends a moment later."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def test_a_consumer_that_stops_early_leaves_nothing_behind(service: FakeService) -> None:
    before = set(threading.enumerate())
    client = Client(service.url)
    service.behavior.delay_s = lambda: 0.01
    rows = client.score((numbered_image(i) for i in range(10_000)), "pets", chunk_size=2)
    next(rows)
    service.behavior.delay_s = lambda: 60.0  # the next requests hang
    next(rows)
    started = time.monotonic()

    rows.close()
    client.close()

    assert time.monotonic() - started < 20  # without waiting for the hanging requests
    wait_until(lambda: set(threading.enumerate()) <= before, "threads are left")
    n_requests = len(service.behavior.paths)
    time.sleep(0.1)
    assert len(service.behavior.paths) == n_requests


def test_a_client_that_is_forgotten_ends_its_thread(service: FakeService) -> None:
    before = set(threading.enumerate())
    client = Client(service.url)
    client.info()

    del client
    gc.collect()

    wait_until(lambda: set(threading.enumerate()) <= before, "threads are left")


def test_a_client_may_be_collected_in_its_own_thread(service: FakeService) -> None:
    """A reference cycle is freed wherever the garbage collector happens to run."""
    before = set(threading.enumerate())

    async def collect() -> None:
        gc.collect()

    client = Client(service.url)
    client.info()
    client.__dict__["cycle"] = client
    loop = client._loop
    gc.disable()
    try:
        del client
        loop.submit(collect)
        wait_until(lambda: set(threading.enumerate()) <= before, "threads are left")
    finally:
        gc.enable()


def test_a_window_cancels_what_is_under_way_when_its_consumer_stops() -> None:
    cancelled: list[int] = []

    async def work(chunk: Chunk) -> int:
        try:
            await asyncio.sleep(0 if chunk[0][0] == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(chunk[0][0])
            raise
        return chunk[0][0]

    async def no_cleanup() -> None:
        pass

    loop = LoopThread("test")
    results = in_order(chunks_of([b""] * 100, 1), lambda chunk: loop.submit(work, chunk), depth=3)
    assert next(results) == 0
    results.close()
    loop.stop(no_cleanup)

    assert cancelled in ([1, 2], [1], [])  # a finished result is yielded before more chunks


def test_scoring_on_an_event_loop(service: FakeService) -> None:
    service.behavior.delay_s = lambda: random.uniform(0, 0.02)

    async def images() -> AsyncIterator[bytes]:
        for i in range(100):
            await asyncio.sleep(0)
            yield numbered_image(i)

    async def score() -> list[list[ScoredImage]]:
        async with AsyncClient(service.url) as client:
            slow = [row async for row in client.score(images(), "pets", chunk_size=3)]
            plain = [numbered_image(i) for i in range(100)]
            return [slow, [row async for row in client.score(plain, ["pets"])]]

    for rows in asyncio.run(score()):
        assert numbers_of(rows) == numbered(100)


def test_stopping_early_on_an_event_loop_leaves_no_task(service: FakeService) -> None:
    async def score() -> int:
        async with AsyncClient(service.url) as client:
            rows = client.score((numbered_image(i) for i in range(1000)), "pets", chunk_size=1)
            async with aclosing(rows):  # type: ignore[type-var]  # a generator
                await anext(rows)
                service.behavior.delay_s = lambda: 60.0
            return len(asyncio.all_tasks())

    started = time.monotonic()
    assert asyncio.run(score()) == 1  # this one
    assert time.monotonic() - started < 20


def test_a_progress_bar_counts_images(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    list(client.score([numbered_image(i) for i in range(40)], "pets", progress=True))

    assert "40/40" in capsys.readouterr().err
