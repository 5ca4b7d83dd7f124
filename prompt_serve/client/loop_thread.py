"""Event loop in a thread of its own, for blocking code that calls coroutine functions.

The synchronous client needs no second implementation this way, and requests in flight can be
cancelled at once (Ctrl-C, a consumer that stops early); a thread blocked in a socket cannot.

``anyio.from_thread.start_blocking_portal`` does nearly the same. It is not used because it cannot
be stopped from its own thread, where the garbage collector may finalize a client.
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
        # A daemon thread: an unclosed client must not keep the interpreter from exiting.
        self._thread = threading.Thread(target=self._run_loop, name=name, daemon=True)
        self._thread.start()
        self._stopping = False

    def submit(
        self,
        function: Callable[Arguments, Coroutine[Any, Any, Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> "Future[Result]":
        """Start ``function(*args, **kwargs)``; cancelling the future cancels the coroutine.

        Raises:
            RuntimeError: the thread was stopped.
        """
        if self._stopping:
            raise RuntimeError("This client is closed. Make a new one.")
        return asyncio.run_coroutine_threadsafe(function(*args, **kwargs), self._loop)

    def run(
        self,
        function: Callable[Arguments, Coroutine[Any, Any, Result]],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Return the result of ``function(*args, **kwargs)``.

        An exception while waiting, such as KeyboardInterrupt, cancels the coroutine.

        Raises:
            RuntimeError: the thread was stopped.
        """
        future = self.submit(function, *args, **kwargs)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self, cleanup: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel all running coroutines, run ``cleanup()`` and end the thread."""
        if self._stopping:
            return
        self._stopping = True
        asyncio.run_coroutine_threadsafe(self._finish(cleanup), self._loop)
        # The garbage collector may call this in the loop's own thread, which cannot join itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run_loop(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _finish(self, cleanup: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            # A task that is being cancelled may have started another one just before.
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
            await cleanup()
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()
        finally:
            self._loop.call_soon(self._loop.stop)
