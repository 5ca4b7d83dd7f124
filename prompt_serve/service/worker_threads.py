"""Thread pools for work that blocks, so that the event loop only waits.

Waiting work runs in turns of the callers, then of their requests (``scheduling.turns``). A thread
runs in a copy of the request's context: the audit log and the timings of a request see it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable
from contextvars import copy_context
from typing import TypeVar

from prompt_serve.errors import NotReady, Overloaded
from prompt_serve.service.request_context import current_request
from prompt_serve.service.scheduling.fair_pool import FairPool
from prompt_serve.service.scheduling.shared_read import SharedRead
from prompt_serve.service.scheduling.turns import Turn

_T = TypeVar("_T")


class WorkerThreads:
    """Pools for reads of the registry, changes of tasks, and scoring.

    Args:
        max_changes: number of changes that may run or wait at once.

    Raises:
        NotReady: (from every method) the service is stopping.
        DeadlineExceeded: (from every method) the request's deadline passed.
    """

    def __init__(self, max_changes: int) -> None:
        self._max_changes = max_changes
        self._changes: Counter[Hashable] = Counter()  # running or waiting, per caller
        self._readers = FairPool(4, "registry")
        # Most of their time they wait: one low-priority thread computes all class features.
        self._changers = FairPool(8, "change")
        self._scorers = FairPool(2, "score")

    async def read(self, function: Callable[..., _T], *args: object) -> _T:
        """Run a function that blocks for a short time."""
        return await _run(self._readers, function, *args)

    def shared_read(self, function: Callable[[], _T]) -> SharedRead[_T]:
        """Return a read that many requests share; it belongs to none of them.

        Args:
            function: blocks for a short time; runs outside of any request's context.
        """
        turn = Turn("", function)
        return SharedRead(lambda: self._readers.submit(turn, function))

    async def change(self, function: Callable[..., _T], *args: object) -> _T:
        """Run a change of tasks, which may wait for class features to be computed.

        Raises:
            Overloaded: ``max_changes`` are running or waiting; more would hold too many bodies in
                memory. Or the caller has more of them than are left for others.
        """
        caller = current_request().turn.caller
        own, left = self._changes[caller], self._max_changes - self._changes.total()
        if left <= 0 or own > left:
            raise Overloaded(
                f"{self._changes.total()} changes of tasks are running or waiting, {own} of them "
                f"yours, and {max(0, left)} more are accepted. Try again later.",
                retry_after_s=2.0,
            )
        self._changes[caller] += 1
        try:
            return await _run(self._changers, function, *args)
        finally:
            self._changes -= Counter([caller])

    async def score(self, function: Callable[[], _T]) -> _T:
        """Run a computation of many scores."""
        return await _run(self._scorers, function)

    def close_changes(self) -> None:
        """Finish running changes and refuse further ones."""
        self._changers.shutdown(wait=True)

    def close(self) -> None:
        """Finish what is running and refuse everything else."""
        for pool in (self._changers, self._readers, self._scorers):
            pool.shutdown(wait=True)


async def _run(pool: FairPool, function: Callable[..., _T], *args: object) -> _T:
    run, request = copy_context().run, current_request()
    try:
        future = pool.submit(request.turn, run, function, *args)
    except RuntimeError as error:
        raise NotReady("The service is stopping.", retry_after_s=1.0) from error
    if request.deadline is None:
        return await asyncio.wrap_future(future)
    # asyncio's clock is time.monotonic, as is that of deadlines.
    timeout = asyncio.timeout_at(request.deadline.at)
    try:
        async with timeout:
            return await asyncio.wrap_future(future)
    except TimeoutError as error:
        if not timeout.expired():
            raise
        # A call that runs cannot be ended from here; what it waits for has the same deadline.
        if future.running():
            when = "while its work was running, which may still finish."
        else:
            when = "before its turn had come."
        raise request.deadline.exceeded(f"{when} Allow more time.") from error
