"""The memory for tasks: its budget holds whatever comes, and what is pinned stays."""

import threading

import numpy as np
import pytest

from prompt_serve.service.tasks.cache import Task, TaskCache


def task(version: str, n_classes: int = 10) -> Task:
    names = tuple(f"class {i} of {version}" for i in range(n_classes))
    features = np.ones((n_classes, 16), dtype=np.float32)
    return Task(version=version, class_names=names, class_features=features)


SIZE = task("a").size_bytes


def never() -> Task:
    raise AssertionError("nothing should be loaded")


def test_the_last_used_tasks_stay() -> None:
    cache = TaskCache(2 * SIZE)
    first = cache.get("a", lambda: task("a"))
    cache.get("b", lambda: task("b"))
    assert cache.get("a", never) is first
    cache.get("c", lambda: task("c"))  # b goes: it was used longest ago

    assert cache.get("a", never) is first
    facts = cache.statistics()
    assert (facts.hits, facts.misses, facts.evictions) == (2, 3, 1)
    assert (facts.tasks, facts.size_bytes) == (2, 2 * SIZE)


def test_the_budget_holds_at_every_moment(rng: np.random.Generator) -> None:
    cache = TaskCache(20 * SIZE)
    for step in range(2000):
        version = f"v{rng.integers(200)}"
        n_classes = int(rng.integers(1, 60))
        cache.get(version, lambda version=version, n=n_classes: task(version, n))  # type: ignore[misc]
        if step % 100 == 0:
            pins = frozenset(f"v{i}" for i in rng.integers(0, 200, 2))
            cache.pin(pins)
        facts = cache.statistics()
        assert facts.size_bytes <= facts.max_bytes
        held = [*cache._tasks.values(), *cache._pinned.values()]
        assert facts.size_bytes == sum(one.size_bytes for one in held)


def test_a_task_larger_than_the_budget_is_answered_and_not_kept() -> None:
    cache = TaskCache(SIZE - 1)
    assert cache.get("a", lambda: task("a")).version == "a"
    assert cache.statistics().size_bytes == 0


def test_pinned_tasks_are_never_put_out() -> None:
    cache = TaskCache(3 * SIZE)
    cache.pin(frozenset({"p"}))
    pinned = cache.get("p", lambda: task("p"))
    for name in "abcdef":
        cache.get(name, lambda name=name: task(name))  # type: ignore[misc]

    assert cache.get("p", never) is pinned
    assert cache.statistics().pinned == 1
    assert cache.pinned_bytes(without="x") == SIZE

    cache.pin(frozenset())
    for name in "ghi":
        cache.get(name, lambda name=name: task(name))  # type: ignore[misc]
    assert cache.statistics().pinned == 0
    assert cache.get("p", lambda: task("p")) is not pinned


def test_threads_that_want_one_task_load_it_once_and_share_its_error() -> None:
    cache = TaskCache(10 * SIZE)
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
    while cache.statistics().misses < 4:
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
