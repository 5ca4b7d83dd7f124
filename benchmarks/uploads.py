"""Time and CPU of uploads, and what swaps of versions cost those who classify.

    python -m benchmarks.uploads --model ViT-B-16/random --precision int8

* new: class names that were never seen; the text encoder runs for all of them.
* added: the names of before and a tenth more; it runs for those.
* again: a definition that was stored before, under another name; it does not run.
* swap: a name is pointed at the version that was stored last.

Then images are classified with and without 20 swaps per second, in turns. A p99 needs a thousand
requests per side: with 150 it has moved by 140 % between two sides that were alike. The options of
``http_throughput`` for bundle and images apply here as well.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from benchmarks import http_throughput as http
from benchmarks.front import cpu_s
from benchmarks.service_figures import SWAPS_PER_SECOND, swapped
from tests.service.process import Served, service


def main() -> None:
    options = parse()
    bundle = http.prepared_bundle(options)
    with tempfile.TemporaryDirectory() as folder:
        images = http.write_images(Path(folder) / "images", options.size)
        with service(Path(folder) / "home", bundle, device=options.device) as served:
            uploads(options, served)
            swaps(options, served, images)


def parse() -> argparse.Namespace:
    parser = http.load_options(__doc__, seconds=5)
    parser.set_defaults(rounds=12)
    add = parser.add_argument
    add("--classes", type=int, default=100, help="class names per upload [default: %(default)s]")
    add("--times", type=int, default=200, help="uploads of each kind [default: %(default)s]")
    return parser.parse_args()


def uploads(options: argparse.Namespace, served: Served) -> None:
    more = options.classes // 10
    with httpx.Client(base_url=served.url, timeout=600) as client:

        def put(name: str, names: list[str]) -> None:
            body = {"name": name, "class_names": names}
            client.post("/v1/tasks", json=body).raise_for_status()

        def names(n: int, count: int) -> list[str]:
            return [f"thing {n} of kind {c}" for c in range(count)]

        def swap(n: int) -> None:
            body = {"of": f"task-{n}"}
            client.put("/v1/tasks/swapped/alias", json=body).raise_for_status()

        kinds: dict[str, Callable[[int], None]] = {
            "new": lambda n: put(f"task-{n}", names(n, options.classes)),
            "added": lambda n: put(f"task-{n}", names(n, options.classes + more)),
            "again": lambda n: put("again", names(n, options.classes + more)),
            "swap": swap,
        }
        put("first", names(-1, options.classes))
        print(f"{options.classes} class names, {options.times} of each kind")
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        used = dict.fromkeys(kinds, 0.0)
        for n in range(options.times):
            for kind, upload in kinds.items():
                cpu, began = cpu_s(served), time.perf_counter()
                upload(n)
                times[kind].append(1000 * (time.perf_counter() - began))
                used[kind] += 1000 * (cpu_s(served) - cpu) / options.times
    print(f"{'upload':>8} {'p50 ms':>8} {'p99 ms':>8} {'server CPU ms':>14}")
    for kind in kinds:
        p50, p99 = np.percentile(times[kind], [50, 99])
        print(f"{kind:>8} {p50:>8.1f} {p99:>8.1f} {used[kind]:>14.1f}")


def swaps(options: argparse.Namespace, served: Served, images: Path) -> None:
    """Classify at concurrency 2, with and without swaps of another task, in turns."""
    http.add_tasks(served, 3, options.classes)
    options.tasks = 1
    found: dict[bool, list[float]] = {False: [], True: []}
    http.run_client(served, images, options, concurrency=2, seconds=2)
    for _ in range(options.rounds):
        for swapping, times in found.items():
            with swapped(served) if swapping else contextlib.nullcontext():
                times += http.run_client(served, images, options, concurrency=2).latencies_ms
    (quiet50, quiet99), (busy50, busy99) = (
        np.percentile(found[swapping], [50, 99]) for swapping in (False, True)
    )
    print(f"{SWAPS_PER_SECOND} swaps/s: classify p50 {quiet50:.1f} -> {busy50:.1f} ms, "
          f"p99 {quiet99:.1f} -> {busy99:.1f} ms ({busy99 / quiet99 - 1:+.1%})")  # fmt: skip


if __name__ == "__main__":
    main()
