"""The memory for tasks: its budget holds whatever comes, and what is pinned stays."""

import threading

import numpy as np
import pytest
from prometheus_client import REGISTRY

from prompt_serve.service.tasks.cache import TaskCache
from prompt_serve.tasks.task import Task


def task(version: str, n_classes: int = 10) -> Task:
    names = tuple(f"class {i} of {version}" for i in range(n_classes))
    features = np.ones((n_classes, 16), dtype=np.float32)
    return Task(version=version, class_names=names, class_features=features)


SIZE = task("a").size_bytes


class Counted:
    """Metrics of the cache, counted from the creation of this object on."""

    def __init__(self) -> None:
        self._before = self._now()

    def __call__(self) -> tuple[float, ...]:
        """Return hits, misses and evictions."""
        return tuple(a - b for a, b in zip(self._now(), self._before, strict=True))

    def _now(self) -> tuple[float, ...]:
        hits, misses = (
            sample("class_feature_lookups_total", {"result": result}) for result in ("hit", "miss")
        )
        return hits, misses, sample("class_feature_evictions_total")


def size_bytes() -> float:
    """Memory in use, by the metric of the cache that changed last."""
    return sample("class_feature_bytes")


def sample(name: str, labels: dict[str, str] | None = None) -> float:
    value = REGISTRY.get_sample_value(f"prompt_serve_{name}", labels or {})
    assert value is not None
    return value


def never() -> Task:
    raise AssertionError("nothing should be loaded")


def test_the_last_used_tasks_stay() -> None:
    cache, counted = TaskCache(2 * SIZE), Counted()
    first = cache.get("a", lambda: task("a"))
    cache.get("b", lambda: task("b"))
    assert cache.get("a", never) is first
    cache.get("c", lambda: task("c"))  # b goes: it was used longest ago

    assert cache.get("a", never) is first
    assert counted() == (2, 3, 1)
    assert len(cache._tasks) == 2
    assert size_bytes() == 2 * SIZE


def test_the_budget_holds_at_every_moment(rng: np.random.Generator) -> None:
    cache = TaskCache(20 * SIZE)
    for step in range(2000):
        version = f"v{rng.integers(200)}"
        n_classes = int(rng.integers(1, 60))
        cache.get(version, lambda version=version, n=n_classes: task(version, n))  # type: ignore[misc]
        if step % 100 == 0:
            pins = frozenset(f"v{i}" for i in rng.integers(0, 200, 2))
            cache.pin(pins)
        assert size_bytes() <= cache.max_bytes
        held = [*cache._tasks.values(), *cache._pinned.values()]
        assert size_bytes() == sum(one.size_bytes for one in held)


def test_a_task_larger_than_the_budget_is_answered_and_not_kept() -> None:
    cache = TaskCache(SIZE - 1)
    assert cache.get("a", lambda: task("a")).version == "a"
    assert size_bytes() == 0


def test_pinned_tasks_are_never_put_out() -> None:
    cache = TaskCache(3 * SIZE)
    cache.pin(frozenset({"p"}))
    pinned = cache.get("p", lambda: task("p"))
    for name in "abcdef":
        cache.get(name, lambda name=name: task(name))  # type: ignore[misc]

    assert cache.get("p", never) is pinned
    assert [*cache._pinned] == ["p"]
    assert cache.pinned_bytes(without="x") == SIZE

    cache.pin(frozenset())
    for name in "ghi":
        cache.get(name, lambda name=name: task(name))  # type: ignore[misc]
    assert cache.pinned_bytes(without="x") == 0
    assert cache.get("p", lambda: task("p")) is not pinned


def test_threads_that_want_one_task_load_it_once_and_share_its_error() -> None:
    cache, counted = TaskCache(10 * SIZE), Counted()
    entered, go_on = threading.Event(), threading.Event()
    loads: list[str] = []

    def load() -> Task:
        loads.append("a")
        entered.set()
        assert go_on.wait(60)
        raise RuntimeError("no disk")

    errors: list[BaseException] = []

    def ask() -> None:
        try:
            cache.get("a", load)
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert entered.wait(60)
    while counted()[1] < 4:
        pass
    go_on.set()
    for thread in threads:
        thread.join()

    assert loads == ["a"]
    assert len(errors) == 4
    with pytest.raises(RuntimeError, match="no disk"):
        cache.get("a", load)


def test_the_size_is_what_python_takes() -> None:
    """Within 5 %, by the allocator's own count."""
    import tracemalloc

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held = [task(f"{i:064x}", 100) for i in range(200)]
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    counted = sum(one.size_bytes for one in held)
    assert 0.95 * grown <= counted <= 1.2 * grown
