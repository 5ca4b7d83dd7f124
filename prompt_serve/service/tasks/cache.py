"""Recently used tasks in memory, within a budget of bytes.

Pinned versions are never evicted. They count toward the budget; the other tasks share the rest.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from prompt_serve.service.observability import metrics
from prompt_serve.tasks.task import Task


class TaskCache:
    """Tasks by version, least recently used first out. Threads that need one load it once.

    Thread-safe. ``metrics`` counts hits, misses, evictions and bytes.

    Args:
        max_bytes: budget of all tasks together. A task that exceeds it alone is loaded for each
            request.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._tasks: OrderedDict[str, Task] = OrderedDict()  # least recently used first
        self._pinned: dict[str, Task] = {}
        self._to_pin: frozenset[str] = frozenset()
        self._loading: dict[str, Future[Task]] = {}
        self._lock = threading.Lock()

    @property
    def max_bytes(self) -> int:
        """Budget of all tasks together."""
        return self._max_bytes

    def get(self, version: str, load: Callable[[], Task]) -> Task:
        """Return the task of a version, calling ``load`` if it is not in memory.

        Raises:
            Exception: anything that ``load`` raises, in every thread that waits for it.
        """
        with self._lock:
            task = self._find(version)
            if task is not None:
                metrics.cache_hits.inc()
                return task
            metrics.cache_misses.inc()
            running = self._loading.get(version)
            if running is None:
                mine = self._loading[version] = Future()
        if running is not None:
            return running.result()
        return self._load(version, load, mine)

    def found(self, versions: Sequence[str]) -> list[Task] | None:
        """Return the tasks of versions if all of them are in memory; else None. Does not block."""
        with self._lock:
            tasks = [self._find(version) for version in versions]
        found = [task for task in tasks if task is not None]
        if len(found) < len(tasks):
            return None
        metrics.cache_hits.inc(len(found))
        return found

    def missing(self, versions: Sequence[str]) -> list[str]:
        """Return the versions that are not in memory, nor being loaded."""
        with self._lock:
            known = (self._tasks, self._pinned, self._loading)
            return [version for version in versions if not any(version in part for part in known)]

    def put(self, task: Task) -> None:
        """Insert a task as the most recently used one."""
        with self._lock:
            self._remove(task.version)
            place = self._pinned if task.version in self._to_pin else self._tasks
            place[task.version] = task
            self._size_bytes += task.size_bytes
            self._evict()

    def pin(self, versions: frozenset[str]) -> None:
        """Replace the set of pinned versions; they stay in memory once they are loaded."""
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
        """Return the memory that pinned tasks take, not counting one version."""
        with self._lock:
            others = (task for version, task in self._pinned.items() if version != without)
            return sum(task.size_bytes for task in others)

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
            metrics.cache_evictions.inc()
        metrics.cache_bytes.set(self._size_bytes)

    def _load(self, version: str, load: Callable[[], Task], loading: Future[Task]) -> Task:
        try:
            task = load()
        # The threads that wait for this load must get the error, whatever it is.
        except BaseException as error:
            with self._lock:
                del self._loading[version]
            loading.set_exception(error)
            raise
        self.put(task)
        with self._lock:
            del self._loading[version]
        loading.set_result(task)
        return task
