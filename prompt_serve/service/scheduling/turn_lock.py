"""Lock that waiting threads get in turns of the callers, then of their requests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.scheduling.turns import Turn, Turns


class TurnLock:
    """Lock that is handed to the next one in turn; see ``Turns``. Not reentrant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._is_held = False
        self._waiting: Turns[threading.Event] = Turns()

    @contextmanager
    def hold(self, turn: Turn, deadline: Deadline | None) -> Iterator[None]:
        """Hold the lock inside the block.

        Raises:
            DeadlineExceeded: the turn did not come in time.
        """
        self._acquire(turn, deadline)
        try:
            yield
        finally:
            self._release()

    def _acquire(self, turn: Turn, deadline: Deadline | None) -> None:
        with self._lock:
            if not self._is_held:
                self._is_held = True
                return
            my_turn = threading.Event()
            # Threads of one request wait as if each were a request of its own.
            place = Turn(turn.caller, (turn.request, my_turn))
            self._waiting.extend(place, [my_turn])
        if my_turn.wait(None if deadline is None else deadline.left_s):
            return
        with self._lock:
            if not self._waiting.discard(place):
                return  # it was handed over at this moment
        assert deadline is not None  # noqa: S101 (without one, the wait ends only with the turn)
        raise deadline.exceeded("before its turn had come. Allow more time.")

    def _release(self) -> None:
        with self._lock:
            following = self._waiting.pop()
            self._is_held = following is not None
            if following is not None:
                following.set()
