"""One budget of bytes for everything in flight in a process.

Bodies, images being decoded, decoded images in the queue, class features of a request and answers
being written reserve their bytes before the work starts. What does not fit waits a bounded time and
is then refused with Overloaded; what can never fit is refused at once with RequestTooLarge.

A quarter of the budget is for bodies, the rest for the work on them: whatever was read can be
decoded and answered, no two requests wait for each other, and large images keep no small body out.
The last eighth of each part is for callers that hold nothing of it: nobody can fill it alone.
"""

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from prompt_serve.errors import Overloaded, RequestTooLarge, ServiceError

Part = Literal["bodies", "work"]

MAX_WAIT_S = 5.0
RETRY_AFTER_S = 2.0

_ROOM_SHARE = 8  # an eighth of a part is for callers that hold nothing of it
_MEMORY_SHARE = 3  # a third of the memory: the model and the class features need the rest
_DEFAULT_RANGE = (128 * 2**20, 2 * 2**30)
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class ByteBudget:
    """Bytes that may be in flight at once. Thread-safe.

    Args:
        limit_bytes: of all reservations together; None: no limit.
        on_change: called with each change of the bytes in use.
        max_wait_s: maximum time that a reservation waits for others to be released.
    """

    def __init__(
        self,
        limit_bytes: int | None,
        on_change: Callable[[int], object] | None = None,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.max_wait_s = max_wait_s
        self._on_change = on_change
        self._limits = None if limit_bytes is None else _parts_of(limit_bytes)
        self._lock = threading.Lock()  # guards everything below, and the bytes of reservations
        self._in_use: dict[Part, int] = {"bodies": 0, "work": 0}
        self._held: Counter[tuple[Part, Hashable]] = Counter()  # by caller
        self._waiting: list[_Waiter] = []

    @property
    def in_use(self) -> int:
        """Bytes that are reserved now."""
        return sum(self._in_use.values())

    def reservation(self, caller: Hashable = None) -> "Reservation":
        """Return a reservation of nothing yet; whoever asks for it releases it.

        Args:
            caller: that it is for; None: of nobody in particular.
        """
        return Reservation(self, caller)

    @contextmanager
    def reserved(self, size_bytes: int) -> Iterator[None]:
        """Reserve bytes inside the block; called from a thread, which may wait.

        Raises:
            Overloaded, RequestTooLarge: as ``Reservation.grow``.
        """
        reservation = self.reservation()
        try:
            reservation.grow(size_bytes)
            yield
        finally:
            reservation.release()

    def _ask(self, reservation: "Reservation", size_bytes: int, part: Part) -> "_Waiter | None":
        """Reserve bytes at once, where they fit; else return who waits for them."""
        with self._lock:
            if reservation.is_released:
                raise ServiceError("The request is over.")
            needed = reservation.held[part] + size_bytes
            if self._limits is not None and needed > self._limits[part]:
                raise self._never_fits(needed, part, self._limits[part])
            if self._fits(reservation, size_bytes, part):
                self._change(reservation, part, size_bytes)
                return None
            waiter = _Waiter(reservation, size_bytes, part)
            self._waiting.append(waiter)
        return waiter

    def _give_up(self, waiter: "_Waiter") -> None:
        """Refuse a waiter whose time is over, unless it was granted at the last moment."""
        with self._lock:
            if waiter.is_granted:
                return
            self._waiting = [other for other in self._waiting if other is not waiter]
            in_use = self._in_use[waiter.part]
        raise Overloaded(
            f"{in_use:,} bytes of {waiter.part} are in flight; {waiter.size_bytes:,} more did not "
            f"fit within {self.max_wait_s:g} s. Retry in {RETRY_AFTER_S:g} s.",
            retry_after_s=RETRY_AFTER_S,
        )

    def _change(self, reservation: "Reservation", part: Part, size_bytes: int) -> None:
        if not size_bytes:
            return
        reservation.held[part] += size_bytes
        self._in_use[part] += size_bytes
        if reservation.caller is not None:
            self._held[part, reservation.caller] += size_bytes
            if not self._held[part, reservation.caller]:
                del self._held[part, reservation.caller]
        if self._on_change is not None:
            self._on_change(size_bytes)

    def _take_back(self, reservation: "Reservation", part: Part, size_bytes: int) -> None:
        with self._lock:
            self._change(reservation, part, -min(size_bytes, reservation.held[part]))
            self._grant()

    def _end(self, reservation: "Reservation") -> None:
        """Take back all bytes of a reservation, and those that it waits for."""
        with self._lock:
            reservation.is_released = True
            self._waiting = [w for w in self._waiting if w.reservation is not reservation]
            for part, held in reservation.held.items():
                self._change(reservation, part, -held)
            self._grant()

    def _grant(self) -> None:
        """Grant what fits, the oldest first; small ones may overtake large ones."""
        for waiter in list(self._waiting):
            if self._fits(waiter.reservation, waiter.size_bytes, waiter.part):
                self._waiting.remove(waiter)
                if waiter.granted.set_running_or_notify_cancel():
                    waiter.is_granted = True
                    self._change(waiter.reservation, waiter.part, waiter.size_bytes)
                    waiter.granted.set_result(None)

    def _fits(self, reservation: "Reservation", size_bytes: int, part: Part) -> bool:
        if self._limits is None or not size_bytes:
            return True
        limit = self._limits[part]
        if self._held[part, reservation.caller] > reservation.held[part]:  # by other requests
            limit -= limit // _ROOM_SHARE
        return self._in_use[part] + size_bytes <= limit

    def _never_fits(self, needed: int, part: Part, limit: int) -> RequestTooLarge:
        return RequestTooLarge(
            f"The request needs {needed:,} bytes of memory for its {part}; at most {limit:,} may "
            f"be in flight. Send smaller or fewer images or files at once, or raise "
            f"PROMPT_SERVE_MAX_BYTES_IN_FLIGHT ({self.limit_bytes:,}).",
            limit=limit,
            count=needed,
        )


class Reservation:
    """Bytes in use by one request or task. ``release`` returns them; after that it takes no more.

    ``held`` and ``is_released`` belong to the budget.
    """

    def __init__(self, budget: ByteBudget, caller: Hashable) -> None:
        self.caller = caller
        self.held: dict[Part, int] = {"bodies": 0, "work": 0}
        self.is_released = False
        self._budget = budget

    def grow(self, size_bytes: int, part: Part = "work") -> None:
        """Reserve more bytes; called from a thread, which may wait.

        Args:
            size_bytes: as many more.
            part: of the budget.

        Raises:
            Overloaded: they did not fit in time.
            RequestTooLarge: they can never fit.
        """
        waiter = self._budget._ask(self, size_bytes, part)
        if waiter is None:
            return
        try:
            waiter.granted.result(self._budget.max_wait_s)
        except TimeoutError:
            self._budget._give_up(waiter)

    async def grow_async(self, size_bytes: int, part: Part = "work") -> None:
        """Reserve more bytes as ``grow`` does, waiting on the event loop."""
        waiter = self._budget._ask(self, size_bytes, part)
        if waiter is None:
            return
        try:
            async with asyncio.timeout(self._budget.max_wait_s):
                await asyncio.wrap_future(waiter.granted)
        except TimeoutError:
            self._budget._give_up(waiter)

    def shrink(self, size_bytes: int, part: Part = "work") -> None:
        """Return some of the bytes."""
        self._budget._take_back(self, part, size_bytes)

    def release(self) -> None:
        """Return all bytes, however often it is called."""
        self._budget._end(self)


class _Waiter:
    """Bytes that a reservation waits for."""

    def __init__(self, reservation: Reservation, size_bytes: int, part: Part) -> None:
        self.reservation = reservation
        self.size_bytes = size_bytes
        self.part: Part = part
        self.is_granted = False
        self.granted: Future[None] = Future()  # cancelled if its request is


UNLIMITED = ByteBudget(None)


def _parts_of(limit_bytes: int) -> dict[Part, int]:
    bodies = limit_bytes // 4
    return {"bodies": bodies, "work": limit_bytes - bodies}


def default_bytes_in_flight(workers: int) -> int:
    """Return a third of the memory of the container or machine, per worker, within limits."""
    lowest, highest = _DEFAULT_RANGE
    return max(lowest, min(highest, memory_bytes() // _MEMORY_SHARE // workers))


def memory_bytes() -> int:
    """Return the memory that this process may use: of its container, otherwise of the machine."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit_in(Path(path)) for path in _CGROUP_LIMITS]
    return min([machine, *(limit for limit in limits if limit is not None)])


def _limit_in(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
