"""Results of threads reach the event loop, many with one wakeup, and none is left behind."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from prompt_serve.service.scheduling.loop_results import LoopResults, at_end_of_step

TIMEOUT_S = 30


class CountingLoop(asyncio.SelectorEventLoop):
    """Event loop that counts how often a thread wakes it."""

    wakeups = 0

    def call_soon_threadsafe(  # type: ignore[override]  # the arguments of every version
        self, *arguments: Any, **options: Any
    ) -> asyncio.Handle:
        self.wakeups += 1
        return super().call_soon_threadsafe(*arguments, **options)


@pytest.mark.parametrize("n", [1, 2, 7, 40, 300])
def test_results_that_come_together_wake_the_loop_once(n: int) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        results = LoopResults()
        futures: list[Future[int]] = [Future() for _ in range(n)]
        waiting = [asyncio.create_task(results.of(future)) for future in futures]
        await asyncio.sleep(0)
        before = loop.wakeups
        thread = threading.Thread(target=complete, args=(futures,))
        thread.start()
        thread.join(TIMEOUT_S)  # holds the loop, as the interpreter's lock would
        woken = loop.wakeups - before
        assert await asyncio.gather(*waiting) == list(range(n))
        return woken

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        assert runner.run(main()) == 1


def complete(futures: list[Future[int]]) -> None:
    for number, future in enumerate(futures):
        future.set_result(number)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [3, 100, 1000])
def test_no_result_is_left_behind_whenever_it_comes(threads: int, n: int) -> None:
    async def main() -> list[int]:
        results = LoopResults()

        async def one(number: int) -> int:
            return await results.of(pool.submit(int, number))

        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.gather(*map(one, range(n)))

    with ThreadPoolExecutor(threads) as pool:
        assert asyncio.run(main()) == list(range(n))


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, RuntimeError, MemoryError])
def test_an_error_reaches_its_caller_alone(kind: type[Exception]) -> None:
    async def main() -> None:
        results = LoopResults()
        failing: Future[int] = Future()
        working: Future[int] = Future()
        both = asyncio.gather(results.of(failing), results.of(working), return_exceptions=True)
        await asyncio.sleep(0)
        failing.set_exception(kind("reason"))
        working.set_result(3)
        error, value = await asyncio.wait_for(both, TIMEOUT_S)
        assert type(error) is kind
        assert value == 3

    asyncio.run(main())


@pytest.mark.parametrize("others", [0, 1, 5])
def test_cancelling_a_caller_cancels_its_future_and_no_other(others: int) -> None:
    async def main() -> None:
        results = LoopResults()
        futures: list[Future[int]] = [Future() for _ in range(1 + others)]
        tasks = [asyncio.create_task(results.of(future)) for future in futures]
        await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert [future.cancelled() for future in futures] == [True] + [False] * others
        complete(futures[1:])
        assert await asyncio.gather(*tasks[1:]) == list(range(others))

    asyncio.run(main())


@pytest.mark.parametrize("others", [1, 2, 7])
def test_a_caller_that_has_gone_does_not_stop_results_that_come_with_its_own(others: int) -> None:
    async def main() -> None:
        results = LoopResults()
        futures: list[Future[int]] = [Future() for _ in range(1 + others)]
        tasks = [asyncio.create_task(results.of(future)) for future in futures]
        await asyncio.sleep(0)
        tasks[0].cancel()
        complete(futures)  # in the same step: its result is on the way already
        async with asyncio.timeout(TIMEOUT_S):
            assert await asyncio.gather(*tasks[1:]) == list(range(1, 1 + others))
        assert tasks[0].cancelled()

    asyncio.run(main())


def test_a_cancelled_future_cancels_its_caller() -> None:
    async def main() -> None:
        results = LoopResults()
        future: Future[int] = Future()
        task = asyncio.create_task(results.of(future))
        await asyncio.sleep(0)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, TIMEOUT_S)

    asyncio.run(main())


def test_results_of_a_loop_that_has_ended_are_dropped_and_the_next_loop_works() -> None:
    results = LoopResults()
    left: Future[int] = Future()

    async def leave() -> None:
        asyncio.create_task(results.of(left)).add_done_callback(lambda task: None)
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert left.cancelled()

    async def again() -> int:
        with ThreadPoolExecutor(1) as pool:
            return await results.of(pool.submit(int, 7))

    assert asyncio.run(again()) == 7


@pytest.mark.parametrize("n", [1, 2, 5])
def test_results_that_a_loop_was_woken_for_but_never_took_do_not_hold_up_the_next(n: int) -> None:
    results = LoopResults()
    futures: list[Future[int]] = [Future() for _ in range(n)]
    loop = asyncio.new_event_loop()
    left = [loop.create_task(results.of(future)) for future in futures]
    loop.run_until_complete(asyncio.sleep(0))
    complete(futures)
    loop.close()

    async def again() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            return [
                await asyncio.wait_for(results.of(pool.submit(int, number)), TIMEOUT_S)
                for number in range(3)
            ]

    assert asyncio.run(again()) == [0, 1, 2]
    assert not any(task.done() for task in left)


@pytest.mark.parametrize("n", [1, 5])
def test_results_that_come_after_their_loop_has_ended_are_no_error(
    n: int, caplog: pytest.LogCaptureFixture
) -> None:
    results = LoopResults()
    futures: list[Future[int]] = [Future() for _ in range(n)]
    loop = asyncio.new_event_loop()
    left = [loop.create_task(results.of(future)) for future in futures]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    complete(futures)  # an exception in its callback would be logged

    assert not caplog.records
    assert not any(task.done() for task in left)


@pytest.mark.parametrize("ready", [1, 2, 10])
def test_the_end_of_a_step_comes_after_all_that_was_ready(ready: int) -> None:
    order: list[str] = []

    async def one() -> None:
        order.append("ready")
        at_end_of_step(lambda: order.append("end"))

    async def main() -> None:
        await asyncio.gather(*(one() for _ in range(ready)))
        await asyncio.sleep(0)

    asyncio.run(main())
    assert order == ["ready"] * ready + ["end"] * ready


def test_without_a_loop_the_end_of_the_step_is_now() -> None:
    called: list[int] = []
    at_end_of_step(lambda: called.append(1))
    assert called == [1]
