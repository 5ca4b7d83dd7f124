"""Hand what threads have computed to the event loop, many results with one wakeup.

    thread:  set_result a, b, c        ->  loop: [a b c] in one step

``asyncio.wrap_future`` wakes the loop once per future. The loop then waits for the interpreter's
lock, which the thread still holds, and both sides pay for the change.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

_T = TypeVar("_T")


def at_end_of_step(function: Callable[[], object]) -> None:
    """Call a function when all that is ready on this thread's event loop has run, or at once if it
    has none.

    What wakes a thread is best done last: it then finds the work of all requests of this step, and
    need not take the interpreter's lock from the loop in between.
    """
    loop = running_loop()
    if loop is None:
        function()
    else:
        loop.call_soon(function)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread; None if none does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class LoopResults:
    """Results of futures of other threads. For the event loop; not thread-safe, except that the
    futures may be done in any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done = _Done()

    async def of(self, future: Future[_T]) -> _T:
        """Await a future as ``asyncio.wrap_future`` does; if the caller is cancelled, it is too."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._done = loop, _Done()
        answer: asyncio.Future[_T] = loop.create_future()
        future.add_done_callback(partial(self._done.add, loop, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            future.cancel()
            raise


class _Done:
    """Futures of one loop that are done and not handed to it yet."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._is_woken = False

    def add(
        self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[_T], done: Future[_T]
    ) -> None:
        """Add a future, in the thread that completed it."""
        self._waiting.append((answer, done))
        # Appended before this is read, and reset before the queue is emptied: none is left behind.
        if not self._is_woken and not loop.is_closed():
            self._is_woken = True
            loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._is_woken = False
        while self._waiting:
            answer, done = self._waiting.popleft()
            if answer.done():  # its caller was cancelled
                continue
            if done.cancelled():
                answer.cancel()
            elif (error := done.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result())
