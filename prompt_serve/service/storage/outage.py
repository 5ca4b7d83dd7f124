"""Use what was read last while the database cannot be read, for a limited time.

During an outage one caller at a time tries again, once per ``RETRY_S``; all others are answered at
once. If a read takes longer than ``PATIENCE_S`` and none that began later has succeeded, that is an
outage for those that come later. A read that fails at the deadline of its own request is none: no
caller decides what others get.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from prompt_serve.errors import NotReady
from prompt_serve.service.request_context import current_request

RETRY_S = 1.0
PATIENCE_S = 3.0

_T = TypeVar("_T")


class Outage:
    """Reads of one kind, and the time since one last succeeded. Thread-safe.

    Args:
        limit_s: maximum age of what may be used; 0: outages are errors at once.
        clock: monotonic clock, in seconds.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._read_at = float("-inf")  # start of the last read that succeeded
        self._failed_at: float | None = None  # None: there is no outage
        self._running: dict[object, float] = {}  # start of each read
        self._retry = threading.Lock()

    @property
    def stale_s(self) -> float:
        """Age of what was read last, during an outage; else 0."""
        return 0.0 if self._failed_at is None else self._clock() - self._read_at

    @property
    def tolerated(self) -> bool:
        """True during an outage, as long as what was read last may be used."""
        return self._failed_at is not None and self.stale_s < self._limit_s

    def read(self, read: Callable[[], _T], last: Callable[[], _T | None]) -> _T:
        """Return what ``read`` returns, or during an outage what ``last`` does.

        Args:
            read: reads the database.
            last: returns what was read before; None if it was not.

        Raises:
            NotReady: the database cannot be read, and there is nothing else, or it is too old.
        """
        self._notice_hanging_reads()
        if self._failed_at is None:
            return self._try(read, last)
        too_early = self._clock() - self._failed_at < RETRY_S
        if too_early or not self._retry.acquire(blocking=False):
            found = last() if self.tolerated else None
            return read() if found is None else found
        try:
            return self._try(read, last)
        finally:
            self._retry.release()

    def end(self) -> None:
        """End the outage: a change was stored, and nobody may miss it from now on."""
        self._failed_at = None

    def _try(self, read: Callable[[], _T], last: Callable[[], _T | None]) -> _T:
        key, started = object(), self._clock()
        self._running[key] = started
        try:
            found = read()
        except NotReady:
            if _is_past_deadline():
                raise
            self._failed_at = self._clock()
            known = last() if self.tolerated else None
            if known is None:
                raise
            return known
        finally:
            del self._running[key]
        self._read_at, self._failed_at = started, None
        return found

    def _notice_hanging_reads(self) -> None:
        oldest = min(list(self._running.values()), default=float("inf"))
        if self._failed_at is not None or not self._limit_s or self._read_at > oldest:
            return
        if self._clock() - oldest > PATIENCE_S:
            self._failed_at = self._clock() - RETRY_S  # the caller that notices it tries again


def _is_past_deadline() -> bool:
    deadline = current_request().deadline
    return deadline is not None and not deadline.left_s
