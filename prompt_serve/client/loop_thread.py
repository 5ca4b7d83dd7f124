"""An event loop in a thread of its own, so that blocking code can use what is written for asyncio.

One implementation serves both clients, and a request in flight can be cancelled at once (Ctrl-C,
a consumer that stops early), which a thread that waits in a socket cannot.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class LoopThread:
    """Runs coroutine functions for other threads until it is stopped."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon: a client that nobody closed must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self._stopping = False

    def submit(
        self,
        work: Callable[Arguments, Coroutine[Any, Any, Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> "Future[Result]":
        """Start ``work(*args)``; cancelling the future cancels it.

        Raises:
            RuntimeError: the thread was stopped.
        """
        if self._stopping:
            raise RuntimeError("This client is closed. Make a new one.")
        return asyncio.run_coroutine_threadsafe(work(*args, **kwargs), self._loop)

    def run(
        self,
        work: Callable[Arguments, Coroutine[Any, Any, Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """The result of ``work(*args)``; what interrupts the waiting also cancels the work."""
        future = self.submit(work, *args, **kwargs)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what still runs, run ``last()``, and end the thread."""
        if self._stopping:
            return
        self._stopping = True
        asyncio.run_coroutine_threadsafe(self._finish(last), self._loop)
        # The garbage collector may get here in the loop's own thread, which cannot wait for itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._loop.close()

    async def _finish(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        try:
            await asyncio.gather(*others, return_exceptions=True)
            await last()
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()
        finally:
            self._loop.call_soon(self._loop.stop)
