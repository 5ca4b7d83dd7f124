"""Order of a fair pool, its limit per caller, and its end."""

import threading
import weakref
from collections import Counter
from concurrent.futures import CancelledError, Future

import pytest

from prompt_serve.service.scheduling.fair_pool import FairPool
from prompt_serve.service.scheduling.turns import Turn


class _Held:
    """Work that holds its thread until it is let go."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self) -> None:
        self.started.release()
        assert self.go.wait(20)


class _Body:
    """Something large that a call takes."""


@pytest.mark.parametrize("others", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("each", [4, 64])
def test_one_call_among_many_waits_one_turn(others: int, each: int) -> None:
    held = _Held()
    done: list[int | str] = []
    pool = FairPool(1, "test")
    pool.submit(Turn("first", 0), held)
    assert held.started.acquire(timeout=20)
    futures = [
        pool.submit(Turn(caller, 0), done.append, caller)
        for caller in range(others)
        for _ in range(each)
    ]
    single = pool.submit(Turn("single", 0), done.append, "single")
    held.go.set()
    for future in [*futures, single]:
        future.result(20)
    pool.shutdown(wait=True)

    assert done.index("single") == others
    assert Counter(done) == Counter([*list(range(others)) * each, "single"])


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_caller_holds_no_more_threads_than_its_limit_and_all_its_calls_run(limit: int) -> None:
    pool = FairPool(4, "test", max_per_caller=limit)
    held = _Held()
    futures = [pool.submit(Turn("greedy", n), held) for n in range(12)]
    for _ in range(limit):
        assert held.started.acquire(timeout=20)

    other = pool.submit(Turn("other", 0), threading.get_ident)
    other.result(20)

    assert not held.started.acquire(timeout=0.05)
    held.go.set()
    for future in futures:
        future.result(20)
    pool.shutdown(wait=True)


def test_results_errors_and_cancellation_reach_the_caller() -> None:
    pool, held = FairPool(1, "test"), _Held()
    running = pool.submit(Turn("a", 0), held)
    assert held.started.acquire(timeout=20)
    value: Future[int] = pool.submit(Turn("a", 1), int, "3")
    error: Future[int] = pool.submit(Turn("a", 2), int, "x")
    cancelled: Future[int] = pool.submit(Turn("a", 3), int, "4")
    assert cancelled.cancel()
    held.go.set()

    assert running.result(20) is None
    assert value.result(20) == 3
    with pytest.raises(ValueError, match="invalid literal"):
        error.result(20)
    with pytest.raises(CancelledError):
        cancelled.result(20)
    pool.shutdown(wait=True)


@pytest.mark.parametrize("waiting", [1, 2, 10, 500])
@pytest.mark.parametrize("requests", [1, 3])
def test_a_cancelled_call_leaves_nothing_behind_before_its_turn(
    waiting: int, requests: int
) -> None:
    """Its turn may be minutes off: a body that it holds must not stay in memory for so long."""
    pool, held = FairPool(1, "test"), _Held()
    running = pool.submit(Turn("a", 0), held)
    assert held.started.acquire(timeout=20)
    bodies = [_Body() for _ in range(waiting)]
    alive = [weakref.ref(body) for body in bodies]
    futures = [pool.submit(Turn("b", n % requests), id, body) for n, body in enumerate(bodies)]
    kept = [pool.submit(Turn("b", n), int, str(n)) for n in range(requests)]
    del bodies
    for future in futures:
        assert future.cancel()
    del futures, future

    assert [one() for one in alive] == [None] * waiting
    assert len(pool) == len(kept)
    held.go.set()
    assert running.result(20) is None
    assert [future.result(20) for future in kept] == list(range(requests))
    pool.shutdown(wait=True)


def test_a_pool_that_ends_cancels_what_waits_and_refuses_the_rest() -> None:
    pool, held = FairPool(1, "test"), _Held()
    running = pool.submit(Turn("a", 0), held)
    assert held.started.acquire(timeout=20)
    waiting = [pool.submit(Turn("b", n), held) for n in range(5)]
    pool.shutdown(wait=False)

    assert all(future.cancelled() for future in waiting)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(Turn("c", 0), held)
    held.go.set()
    assert running.result(20) is None


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, MemoryError, SystemExit])
def test_a_call_that_fails_is_logged_and_its_thread_goes_on(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise kind("reason")

    pool = FairPool(1, "test")
    for number in range(3):
        pool.start(Turn("a", number), fail)
    assert pool.submit(Turn("a", 3), int, "3").result(20) == 3
    pool.shutdown(wait=True)

    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [kind] * 3


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("calls", [1, 10, 500])
def test_every_call_runs_once_and_the_threads_run_side_by_side(threads: int, calls: int) -> None:
    pool, together = FairPool(threads, "test"), threading.Barrier(threads)
    for number in range(threads):
        pool.start(Turn(number, 0), together.wait, 20)  # broken unless all threads are here
    done: list[int] = []
    finished = threading.Semaphore(0)

    def note(number: int) -> None:
        done.append(number)
        finished.release()

    for number in range(calls):
        pool.start(Turn(number % 7, number), note, number)
    for _ in range(calls):
        assert finished.acquire(timeout=20)
    pool.shutdown(wait=True)

    assert sorted(done) == list(range(calls))
    assert not together.broken
