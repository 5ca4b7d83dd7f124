"""Cost of ten thousand registered tasks: startup time, memory, and latency of a hot task.

    python -m benchmarks.many_tasks --bundle ~/.prompt-serve/bundles/embedded --tasks 10000

Every task has its own prompt file and stored class features, as after uploads. Each figure is
measured in a separate process, because Python rarely returns memory. Prints one JSON line.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from prompt_serve.bundle import open_bundle
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, to_bytes
from prompt_serve.service.core import Core
from prompt_serve.service.settings import Settings
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import NewTask, Registry

CHUNK = 500  # tasks per transaction
HOT = "task-00000"
REQUESTS = 10_000  # for tasks that are not in memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--measure", choices=("start", "names", "hot"), help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure = {"start": at_start, "names": cold_names, "hot": hot_task}[options.measure]
        print(json.dumps(measure(options.home, options.bundle)))
        return
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder, "one"), Path(folder, "many")
        fill(one, options.bundle, 1, options.classes)
        fill(many, options.bundle, options.tasks, options.classes)
        print(json.dumps(compare(one, many, options.bundle, options.tasks)))


def compare(one: Path, many: Path, bundle: Path, n_tasks: int) -> dict[str, float]:
    """Compare a service with one task to a service with many."""
    alone, among = (_measured("hot", home, bundle) for home in (one, many))
    few, all_of_them = (_measured("names", home, bundle) for home in (one, many))
    grown = all_of_them["rss_bytes"] - few["rss_bytes"]
    return {
        "tasks": n_tasks,
        "registry_at_start_s": _measured("start", many, bundle)["registry_s"],
        "rss_bytes_a_cold_task": grown / n_tasks,
        "hot_resolve_alone_p50_ms": alone["p50_ms"],
        "hot_resolve_among_many_p50_ms": among["p50_ms"],
    }


def fill(home: Path, bundle_path: Path, n_tasks: int, n_classes: int) -> None:
    """Create a registry of distinct prompt files with stored random class features."""
    bundle = open_bundle(bundle_path)
    rng = np.random.default_rng(0)
    backbone = bundle.manifest.backbone
    features = rng.standard_normal((n_classes, backbone.embed_dim)).astype("<f4")
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    prompt = Prompt(
        name="task",
        method="zero-shot",
        class_names=tuple(f"class {i}" for i in range(n_classes)),
        templates=("a photo of a {}.",),
        backbone=backbone,
        probe=probe(features),
        tool_version="benchmark",
    )
    home.mkdir()
    database = Database(f"sqlite:///{home / 'registry.db'}")
    registry = Registry(database)
    for start in range(0, n_tasks, CHUNK):
        numbers = range(start, min(start + CHUNK, n_tasks))
        registry.put_all([_task(prompt, n, features.tobytes()) for n in numbers])
    database.close()


def at_start(home: Path, bundle: Path) -> dict[str, float]:
    """Measure the seconds to open the registry, without the bundle."""
    with_registry = _seconds(lambda: _core(home, bundle).close())
    with tempfile.TemporaryDirectory() as empty:
        _core(Path(empty), bundle).close()  # creates the tables
        without = _seconds(lambda: _core(Path(empty), bundle).close())
    return {"registry_s": with_registry - without}


def cold_names(home: Path, bundle: Path) -> dict[str, float]:
    """Measure memory after resolving every task, with a cache that keeps none.

    With one task the same number of requests is made, so that the memory that the allocator and
    SQLite hold is in both figures.
    """
    core = _core(home, bundle, feature_cache_bytes=0)
    names = core.registry.versions_of_backbone(core.bundle.manifest.backbone.fingerprint)
    for _, name in zip(range(REQUESTS), itertools.cycle(names), strict=False):
        core.resolver.resolve([name])  # one at a time, so that no request holds many tasks
    rss_bytes = psutil.Process().memory_info().rss
    core.close()
    return {"rss_bytes": float(rss_bytes)}


def hot_task(home: Path, bundle: Path) -> dict[str, float]:
    """Measure the median time to resolve a task that is in memory."""
    core = _core(home, bundle)
    core.resolver.resolve([HOT])
    times = [_seconds(lambda: core.resolver.resolve([HOT])) for _ in range(2000)]
    core.close()
    return {"p50_ms": 1000 * statistics.median(times)}


def _task(prompt: Prompt, number: int, features: bytes) -> NewTask:
    renamed = replace(prompt, name=f"task-{number:05}")
    return NewTask(name=renamed.name, data=to_bytes(renamed), prompt=renamed, features=features)


def _core(home: Path, bundle: Path, **settings: int) -> Core:
    return Core(Settings(home=home, bundle=bundle, **settings))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _measured(what: str, home: Path, bundle: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.many_tasks", "--measure", what]
    done = subprocess.run(
        [*command, "--home", str(home), "--bundle", str(bundle)],
        check=True,
        capture_output=True,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
