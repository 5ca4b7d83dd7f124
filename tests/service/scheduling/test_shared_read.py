"""One read for all who ask before it begins; never one that began before the question."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from prompt_serve.errors import NotReady
from prompt_serve.service.scheduling import shared_read
from prompt_serve.service.scheduling.shared_read import SharedRead


class Source:
    """A number that is read in a thread, each time only when ``go`` is released."""

    def __init__(self) -> None:
        self.value = 0
        self.reads = 0
        self.go = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self._pool = ThreadPoolExecutor(8)

    def start(self) -> Future[int]:
        return self._pool.submit(self._read)

    def end(self) -> None:
        """Wait until all reads have ended."""
        self._pool.shutdown()

    def _read(self) -> int:
        value = self.value  # seen when the read begins
        self.reads += 1
        self.began.release()
        self.go.acquire(timeout=30)
        return value


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("followers", [1, 2, 3, 10, 100])
def test_who_asks_during_a_read_gets_the_next_one(
    followers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_read, "PATIENCE_S", 30)
    source = Source()

    async def main() -> None:
        shared = SharedRead(source.start)
        first = asyncio.create_task(shared.result())
        await until(lambda: source.reads == 1)
        source.value = 1  # as by an upload that was answered
        others = [asyncio.create_task(shared.result()) for _ in range(followers)]
        await asyncio.sleep(0)
        source.go.release(2)

        assert await first == 0
        assert await asyncio.gather(*others) == [1] * followers
        assert source.reads == 2

    asyncio.run(main())


@pytest.mark.parametrize("callers", [1, 2, 3, 10, 100])
def test_all_who_ask_in_one_step_of_the_loop_share_a_read(
    callers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_read, "PATIENCE_S", 30)
    source = Source()

    async def main() -> None:
        shared = SharedRead(source.start)
        source.go.release(1)
        assert await asyncio.gather(*(shared.result() for _ in range(callers))) == [0] * callers
        assert source.reads == 1

    asyncio.run(main())


def test_a_cancelled_caller_does_not_end_the_read_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_read, "PATIENCE_S", 30)
    source = Source()

    async def main() -> None:
        shared = SharedRead(source.start)
        tasks = [asyncio.create_task(shared.result()) for _ in range(4)]
        await until(lambda: source.reads == 1)
        tasks[0].cancel()
        tasks[2].cancel()
        source.go.release(2)

        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in found] == [True, False] * 2
        assert [found[1], found[3]] == [0, 0]

    asyncio.run(main())


def test_callers_of_a_slow_read_are_told_to_read_on_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_read, "PATIENCE_S", 0.02)
    source = Source()

    async def main() -> None:
        shared = SharedRead(source.start)
        slow = asyncio.create_task(shared.result())
        await until(lambda: source.reads == 1)
        waiting = asyncio.create_task(shared.result())
        assert await slow is None
        assert await waiting is None
        async with asyncio.timeout(30):
            assert [await shared.result() for _ in range(3)] == [None] * 3  # at once
        assert source.reads == 1
        monkeypatch.setattr(shared_read, "PATIENCE_S", 30)
        source.go.release(3)
        async with asyncio.timeout(30):
            while (found := await shared.result()) is None:  # until the slow one has ended
                await asyncio.sleep(0.001)
        assert found == 0
        assert source.reads > 1

    asyncio.run(main())


@pytest.mark.parametrize("how", ["failing", "cancelled", "stopping"])
def test_a_failed_read_is_nobodys_answer(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_read, "PATIENCE_S", 60)

    def fail() -> Future[int]:
        if how == "stopping":
            raise RuntimeError("the pool was shut down")
        failed: Future[int] = Future()
        if how == "cancelled":
            failed.cancel()
        else:
            failed.set_exception(NotReady("The registry cannot be read.", retry_after_s=1.0))
        return failed

    async def main() -> None:
        shared = SharedRead(fail)
        async with asyncio.timeout(30):
            for _ in range(3):
                assert await shared.result() is None
            assert await asyncio.gather(*(shared.result() for _ in range(3))) == [None] * 3

    asyncio.run(main())


@pytest.mark.parametrize("readers", [1, 3])
def test_a_read_that_outlives_its_loop_does_not_hold_up_the_next_loop(
    readers: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_read, "PATIENCE_S", 60)
    source = Source()
    shared = SharedRead(source.start)

    async def leave() -> None:
        left = [asyncio.create_task(shared.result()) for _ in range(readers)]
        await until(lambda: source.reads == 1)
        left.append(asyncio.create_task(shared.result()))  # which would be the next read
        await asyncio.sleep(0)

    async def again() -> None:
        source.go.release(2)
        async with asyncio.timeout(30):
            assert await shared.result() == 0
        assert source.reads == 2

    asyncio.run(leave())
    asyncio.run(again())
    source.end()
    assert not caplog.records


@pytest.mark.parametrize("times", [1, 2, 5])
def test_reads_one_after_the_other_are_all_answered(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_read, "PATIENCE_S", 30)
    source = Source()

    async def main() -> None:
        shared = SharedRead(source.start)
        for number in range(times):
            source.value = number
            source.go.release()
            assert await shared.result() == number
        assert source.reads == times

    asyncio.run(main())


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, MemoryError, SystemExit])
def test_after_a_read_that_failed_in_any_way_the_next_one_is_shared_again(
    kind: type[BaseException],
) -> None:
    failing = [True]

    def read() -> int:
        if failing:
            failing.pop()
            raise kind("reason")
        return 7

    async def main() -> list[int | None]:
        with ThreadPoolExecutor(1) as pool:
            shared = SharedRead(lambda: pool.submit(read))
            return [await shared.result() for _ in range(3)]

    assert asyncio.run(main()) == [None, 7, 7]
