"""Tasks that are ready to answer, in memory: the last used ones within a budget of bytes.

Pinned versions are never put out; they count to the budget, so the others get what they leave.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property

from prompt_serve.service.observability import metrics
from prompt_serve.types import FloatArray

_BYTES_OF_A_TASK = 1200  # the objects around the array and the names, and their place in the cache
_POINTER_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Task:
    """One version of a task, ready to answer."""

    version: str  # sha256 of the prompt file
    class_names: tuple[str, ...]
    class_features: FloatArray  # (C, E), unit length, read-only
    temperature: float = 1.0  # of the probabilities
    unknown_below: float = 0.0  # a best probability below it means that the image shows no class

    @cached_property
    def size_bytes(self) -> int:
        """What it takes of the memory."""
        names = sum(sys.getsizeof(name) + _POINTER_BYTES for name in self.class_names)
        return self.class_features.nbytes + names + _BYTES_OF_A_TASK


@dataclass(frozen=True, kw_only=True)
class CacheStatistics:
    """Counters since the start, and what is in memory now."""

    hits: int
    misses: int
    evictions: int
    tasks: int
    pinned: int
    size_bytes: int
    max_bytes: int


class TaskCache:
    """Tasks by version; several threads that want one load it once. Thread-safe.

    Args:
        max_bytes: of all tasks in it. A task that exceeds it alone is loaded for each request.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._tasks: OrderedDict[str, Task] = OrderedDict()  # last used last; none of the pinned
        self._pinned: dict[str, Task] = {}
        self._to_pin: frozenset[str] = frozenset()
        self._loading: dict[str, Future[Task]] = {}
        self._lock = threading.Lock()
        self._hits = self._misses = self._evictions = 0

    def get(self, version: str, load: Callable[[], Task]) -> Task:
        """The task of a version; what ``load`` raises, all who wait for it get."""
        with self._lock:
            task = self._find(version)
            if task is not None:
                self._hits += 1
                metrics.cache_hits.inc()
                return task
            self._misses += 1
            metrics.cache_misses.inc()
            running = self._loading.get(version)
            if running is None:
                mine = self._loading[version] = Future()
        if running is not None:
            return running.result()
        return self._load(version, load, mine)

    def put(self, task: Task) -> None:
        """Have a task in memory, as the last used one."""
        with self._lock:
            self._remove(task.version)
            place = self._pinned if task.version in self._to_pin else self._tasks
            place[task.version] = task
            self._size_bytes += task.size_bytes
            self._evict()
            metrics.cache_bytes.set(self._size_bytes)

    def pin(self, versions: frozenset[str]) -> None:
        """Keep these versions, and no others, once they are loaded."""
        if versions == self._to_pin:
            return
        with self._lock:
            self._to_pin = versions
            for version in [*self._pinned]:
                if version not in versions:
                    self._tasks[version] = self._pinned.pop(version)
            for version in versions & self._tasks.keys():
                self._pinned[version] = self._tasks.pop(version)
            self._evict()

    def pinned_bytes(self, *, without: str) -> int:
        """What the pinned versions take of the memory, one of them not counted."""
        with self._lock:
            others = (task for version, task in self._pinned.items() if version != without)
            return sum(task.size_bytes for task in others)

    def statistics(self) -> CacheStatistics:
        with self._lock:
            return CacheStatistics(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                tasks=len(self._tasks) + len(self._pinned),
                pinned=len(self._pinned),
                size_bytes=self._size_bytes,
                max_bytes=self._max_bytes,
            )

    def _find(self, version: str) -> Task | None:
        task = self._tasks.get(version)
        if task is not None:
            self._tasks.move_to_end(version)
            return task
        return self._pinned.get(version)

    def _remove(self, version: str) -> None:
        old = self._tasks.pop(version, None) or self._pinned.pop(version, None)
        if old is not None:
            self._size_bytes -= old.size_bytes

    def _evict(self) -> None:
        while self._size_bytes > self._max_bytes and self._tasks:
            _, evicted = self._tasks.popitem(last=False)
            self._size_bytes -= evicted.size_bytes
            self._evictions += 1
            metrics.cache_evictions.inc()

    def _load(self, version: str, load: Callable[[], Task], waited_for: Future[Task]) -> Task:
        try:
            task = load()
        # Whatever it is, those who wait for this load must hear of it.
        except BaseException as error:
            with self._lock:
                del self._loading[version]
            waited_for.set_exception(error)
            raise
        self.put(task)
        with self._lock:
            del self._loading[version]
        waited_for.set_result(task)
        return task
