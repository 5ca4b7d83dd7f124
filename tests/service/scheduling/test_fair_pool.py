"""Order of a fair pool, its limit per caller, and its end."""

import threading
import time
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
    pool.start(Turn("b", 5), held)  # nobody has its future
    waiting.append(pool.submit(Turn("b", 6), held))
    pool.shutdown(wait=False)

    assert all(future.cancelled() for future in waiting)
    for add in (pool.submit, pool.start):
        with pytest.raises(RuntimeError, match=r"^the pool was shut down$"):
            add(Turn("c", 0), held)
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
    assert {record.getMessage() for record in caplog.records} == {
        "a call in the pool 'test' failed"
    }


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


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_thread_has_the_name_of_the_pool_and_is_initialized(threads: int) -> None:
    initialized: list[str] = []
    pool = FairPool(
        threads,
        "special",
        initializer=lambda: initialized.append(threading.current_thread().name),
    )
    together = threading.Barrier(threads + 1)
    for number in range(threads):
        pool.start(Turn(number, 0), together.wait, 20)
    together.wait(20)
    pool.shutdown(wait=True)

    assert sorted(initialized) == [f"special_{number}" for number in range(threads)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_pool_that_was_idle_has_all_its_threads_again(threads: int) -> None:
    pool = FairPool(threads, "test")
    for _ in range(5):
        together = threading.Barrier(threads + 1)
        for number in range(threads):
            pool.start(Turn("a", number), together.wait, 20)
        together.wait(20)
        assert len(pool) == 0
    pool.shutdown(wait=True)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_caller_at_its_limit_goes_on_when_its_calls_end(limit: int) -> None:
    """Also where they fail, and after it has had none for a time."""
    pool = FairPool(3, "test", max_per_caller=limit)
    for _ in range(3):
        held = _Held()
        futures = [pool.submit(Turn("greedy", n), held) for n in range(limit)]
        for _ in range(limit):
            assert held.started.acquire(timeout=20)
        waiting = [pool.submit(Turn("greedy", n), int, "x") for n in range(limit, 5)]
        other = [pool.submit(Turn("other", n), int, "3") for n in range(2)]
        assert [future.result(20) for future in other] == [3, 3]
        assert len(pool) == len(waiting)
        held.go.set()
        for future in futures:
            future.result(20)
        for failing in waiting:
            with pytest.raises(ValueError, match="invalid literal"):
                failing.result(20)
    pool.shutdown(wait=True)


def test_a_pool_that_waits_for_its_end_ends_after_the_running_call() -> None:
    pool, held = FairPool(1, "test"), _Held()
    pool.start(Turn("a", 0), held)
    assert held.started.acquire(timeout=20)
    done = threading.Event()

    def stop() -> None:
        pool.shutdown(wait=True)
        done.set()

    stopping = threading.Thread(target=stop)
    stopping.start()
    assert not done.wait(0.05)
    held.go.set()
    assert done.wait(20)
    stopping.join(20)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_are_woken_once_however_many_calls_wait(threads: int) -> None:
    pool = FairPool(threads, "test")
    for _ in range(3):
        held = _Held()
        for number in range(threads):
            pool.start(Turn("a", number), held)
            assert held.started.acquire(timeout=20)
        for number in range(50):
            pool.start(Turn("b", number), held)

        assert pool._pool._work_queue.qsize() == 0
        held.go.set()
        give_up = time.monotonic() + 20
        while pool._active > 0:  # until the pool is idle
            assert time.monotonic() < give_up
            time.sleep(0.001)
    pool.shutdown(wait=True)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_one_call_that_ends_makes_room_for_one_of_its_caller(limit: int) -> None:
    pool = FairPool(6, "test", max_per_caller=limit)
    calls = [_Held() for _ in range(limit + 3)]
    for number, call in enumerate(calls):
        pool.start(Turn("greedy", number), call)
    for call in calls[:limit]:
        assert call.started.acquire(timeout=20)
    for ending, starting, waiting in zip(calls, calls[limit:], calls[limit + 1 :], strict=False):
        ending.go.set()
        assert starting.started.acquire(timeout=20)
        assert not waiting.started.acquire(timeout=0.01)
    for call in calls:
        call.go.set()
    pool.shutdown(wait=True)

    assert not pool._running  # nothing is kept of a caller
