"""One read for all requests that ask for it before it begins.

    asked:   a        b  c  d
    reads:   [-- 1 --][-- 2 --]       1 is for a; 2, which begins after all of them, for b, c and d

Whoever is answered sees what the database held at some time after the question, as with a read of
its own, and a thread is woken once instead of once per request.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

from prompt_serve.service.scheduling.loop_results import at_end_of_step

PATIENCE_S = 0.25

_T = TypeVar("_T")


class SharedRead(Generic[_T]):
    """For the event loop; not thread-safe.

    Args:
        start: begins the read in a thread.
    """

    def __init__(self, start: Callable[[], Future[_T]]) -> None:
        self._start = start
        self._running: asyncio.Future[_T | None] | None = None
        self._next: asyncio.Future[_T | None] | None = None
        self._has_begun = False  # the running one; those who ask in one step of the loop share it

    async def result(self) -> _T | None:
        """Return what the next read returns; None if it fails or takes more than a moment.

        Then whoever asks reads on its own, within its own deadline and with its own error.
        """
        loop = asyncio.get_running_loop()
        if self._running is not None and self._running.get_loop() is not loop:
            self._running = self._next = None
        if self._running is None:
            self._has_begun = False
            answer = self._running = loop.create_future()
            at_end_of_step(partial(self._begin, answer))
        elif not self._has_begun:
            answer = self._running
        elif self._running.done():  # it is late, and goes on
            return None
        else:
            answer = self._next = self._next or loop.create_future()
        # Shielded: of a request that is cancelled, the others still wait.
        return await asyncio.shield(answer)

    def _begin(self, answer: asyncio.Future[_T | None]) -> None:
        loop = answer.get_loop()
        self._running, self._has_begun = answer, True
        timer = loop.call_later(PATIENCE_S, self._answer_late, answer)
        try:
            reading = self._start()
        except RuntimeError:  # the service is stopping
            self._end(answer, timer, None)
        else:
            reading.add_done_callback(lambda done: self._report(loop, answer, timer, done))

    def _report(
        self,
        loop: asyncio.AbstractEventLoop,
        answer: "asyncio.Future[_T | None]",
        timer: asyncio.TimerHandle,
        done: Future[_T],
    ) -> None:
        """Hand the result to the event loop; called in the thread that read it."""
        failed = done.cancelled() or done.exception() is not None
        found = None if failed else done.result()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._end, answer, timer, found)

    def _end(
        self,
        answer: "asyncio.Future[_T | None]",
        timer: asyncio.TimerHandle,
        found: _T | None,
    ) -> None:
        timer.cancel()
        if not answer.done():
            answer.set_result(found)
        following, self._running, self._next = self._next, None, None
        if following is not None:
            self._begin(following)

    def _answer_late(self, answer: "asyncio.Future[_T | None]") -> None:
        """Let those who wait, and who would wait for the next read, read on their own."""
        for one in (answer, self._next):
            if one is not None and not one.done():
                one.set_result(None)
