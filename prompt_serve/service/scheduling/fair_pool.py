"""Thread pool whose waiting work runs in turns of the callers, then of their requests."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from prompt_serve.service.scheduling.turns import Turn, Turns

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def _nothing() -> None:
    pass


@dataclass(eq=False, slots=True)
class _Work:
    """Call that waits for its turn, and what cancels it."""

    turn: Turn
    call: Callable[[], object]
    cancel: Callable[[], object]

    def take_call(self) -> Callable[[], object]:
        """Return the call, to which nothing refers any longer but its caller."""
        call, self.call, self.cancel = self.call, _nothing, _nothing
        return call


class FairPool:
    """Pool of threads that take turns; see ``Turns``.

    Args:
        threads: number of threads.
        name: prefix of their names.
        max_per_caller: maximum number of threads that one caller may hold at a time.
        initializer: called in each thread when it starts.
    """

    def __init__(
        self,
        threads: int,
        name: str,
        *,
        max_per_caller: int | None = None,
        initializer: Callable[[], object] | None = None,
    ) -> None:
        self._name = name
        self._threads = threads
        self._max_per_caller = max_per_caller or threads
        self._lock = threading.Lock()  # guards everything below
        self._waiting: Turns[_Work] = Turns()
        self._running: Counter[Hashable] = Counter()
        self._active = 0  # calls of _run_waiting that have not found the queue empty
        self._is_shut_down = False
        # Its own queue holds only calls of _run_waiting, at most one per thread.
        self._pool = ThreadPoolExecutor(threads, name, initializer=initializer)

    def __len__(self) -> int:
        """Return the number of calls that wait for a thread."""
        return len(self._waiting)

    def submit(self, turn: Turn, function: Callable[..., _T], *args: object) -> Future[_T]:
        """Call ``function`` when the turn has come; until then, cancelling the future drops it.

        Raises:
            RuntimeError: the pool was shut down.
        """
        future: Future[_T] = Future()
        work = self._add(turn, lambda: _run(future, function, *args), future.cancel)
        future.add_done_callback(partial(self._drop_if_cancelled, work))
        return future

    def start(self, turn: Turn, function: Callable[..., object], *args: object) -> None:
        """Call ``function`` when the turn has come, for its effects; an error is only logged.

        Raises:
            RuntimeError: the pool was shut down.
        """
        self._add(turn, lambda: function(*args), lambda: None)

    def _add(self, turn: Turn, call: Callable[[], object], cancel: Callable[[], object]) -> _Work:
        work = _Work(turn, call, cancel)
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("the pool was shut down")
            self._waiting.extend(turn, [work])
            # Waking a thread takes longer than much of what they run; those that run go on.
            if self._active < self._threads:
                self._active += 1
                self._pool.submit(self._run_waiting)
        return work

    def _drop_if_cancelled(self, work: _Work, future: Future[_T]) -> None:
        """Let go of what a cancelled call holds: its turn may be a long time off."""
        if future.cancelled():
            work.take_call()
            with self._lock:
                self._waiting.remove(work.turn, work)

    def shutdown(self, *, wait: bool) -> None:
        """Cancel what waits and accept nothing more.

        Args:
            wait: return when the running calls have ended.
        """
        with self._lock:
            self._is_shut_down = True
            left = list(iter(self._waiting.pop, None))
        for work in left:
            work.cancel()
        self._pool.shutdown(wait=wait)

    def _run_waiting(self) -> None:
        """Run waiting calls until none is left whose caller may hold one more thread."""
        while (work := self._next()) is not None:
            try:
                work.take_call()()
            # Nobody reads what ``start`` runs raises, and the thread is still needed.
            except BaseException:
                _log.exception("a call in the pool %r failed", self._name)
            finally:
                with self._lock:
                    self._running[work.turn.caller] -= 1
                    if not self._running[work.turn.caller]:
                        del self._running[work.turn.caller]

    def _next(self) -> _Work | None:
        with self._lock:
            work = self._waiting.pop(lambda caller: self._running[caller] < self._max_per_caller)
            if work is None:
                self._active -= 1
            else:
                self._running[work.turn.caller] += 1
            return work


def _run(future: Future[_T], function: Callable[..., _T], *args: object) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*args)
    # As in concurrent.futures: whoever waits for the result gets the error, whatever it is.
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
