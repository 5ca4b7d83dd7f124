"""Queue whose items leave in turns: of the callers first, then of each caller's requests.

    a: [a1 a1 a1] [a2]    b: [b1]    ->    a1 b1 a2 a1 a1

A caller that sends much delays others by one item per turn, whatever it sends.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

_T = TypeVar("_T")


class Turn(NamedTuple):
    """Owner of an item: the caller, and its request."""

    caller: Hashable
    request: Hashable


class Turns(Generic[_T]):
    """Items in turns; not thread-safe. All operations take constant time per item."""

    def __init__(self) -> None:
        # In the order of their turns; neither a caller nor a request is here without an item.
        self._callers: OrderedDict[Hashable, OrderedDict[Hashable, deque[_T]]] = OrderedDict()
        self._size = 0
        self._n_requests = 0

    def __len__(self) -> int:
        return self._size

    def extend(self, turn: Turn, items: Iterable[_T]) -> None:
        """Add items of one request, to leave in their order; a new caller's turn is the last."""
        added = list(items)
        if not added:
            return
        requests = self._callers.setdefault(turn.caller, OrderedDict())
        self._n_requests += turn.request not in requests
        requests.setdefault(turn.request, deque()).extend(added)
        self._size += len(added)

    @property
    def n_requests(self) -> int:
        """Number of requests with items."""
        return self._n_requests

    def first(self) -> _T:
        """Return the next item without removing it; there must be one."""
        requests = next(iter(self._callers.values()))
        return next(iter(requests.values()))[0]

    def pop(self, is_eligible: Callable[[Hashable], bool] = lambda caller: True) -> _T | None:
        """Remove and return the next item; None if there is none.

        Args:
            is_eligible: whether a caller may have a turn now; others keep theirs.
        """
        for caller in self._callers:
            if is_eligible(caller):
                break
        else:
            return None
        requests = self._callers[caller]
        request, items = next(iter(requests.items()))
        item = items.popleft()
        self._size -= 1
        requests.move_to_end(request)
        self._callers.move_to_end(caller)
        if not items:
            del requests[request]
            self._n_requests -= 1
        if not requests:
            del self._callers[caller]
        return item

    def remove(self, turn: Turn, item: _T) -> None:
        """Remove an item of a request, if it is still there."""
        requests = self._callers.get(turn.caller, OrderedDict())
        items = requests.get(turn.request, deque())
        if item not in items:
            return
        if len(items) == 1:
            self.discard(turn)
            return
        items.remove(item)
        self._size -= 1

    def discard(self, turn: Turn) -> list[_T]:
        """Remove and return all items of a request."""
        requests = self._callers.get(turn.caller, OrderedDict())
        removed = list(requests.pop(turn.request, ()))
        if not requests:
            self._callers.pop(turn.caller, None)
        self._size -= len(removed)
        self._n_requests -= bool(removed)
        return removed
