"""Cost of all tasks of a large registry for one image: NDJSON and the best tasks.

    python -m benchmarks.all_tasks --tasks 5000

Starts a service on a registry of distinct prompt files with stored class features. Each request is
made with no task in memory (cold: right after the start) and again (warm); memory is that of all
processes of the service. Meanwhile another client asks one task, one request after the other.
Prints one JSON line.
"""

import argparse
import io
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.many_tasks import HOT, fill
from prompt_serve.bundle import shipped_bundle
from tests.service.process import Served, service

NDJSON = {"accept": "application/x-ndjson"}
WARM_REQUESTS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=shipped_bundle("embedded"))
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        fill(home, options.bundle, options.tasks, options.classes)
        with service(home, options.bundle) as served:
            print(json.dumps({"tasks": options.tasks, **measure(served, options.tasks)}))


def measure(served: Served, n_tasks: int) -> dict[str, float]:
    """Measure seconds per request, growth of memory, and the latency of another client."""
    url = f"{served.url}/v1/classify"
    for _ in range(20):
        timed(f"{url}?task={HOT}", {})
    before = memory_bytes(served)
    cold_s, answer = timed(f"{url}?task=*&top_k=5", NDJSON)
    after_cold = memory_bytes(served)
    lines = answer.content.splitlines()
    assert len(lines) == n_tasks + 1
    assert json.loads(lines[-1])["complete"]
    alone = [timed(f"{url}?task={HOT}", {})[0] for _ in range(100)]
    with asking(f"{url}?task={HOT}") as beside:
        warm = [timed(f"{url}?task=*&top_k=5", NDJSON)[0] for _ in range(WARM_REQUESTS)]
        best = [timed(f"{url}?task=*&top_k=5&top_tasks=10", {})[0] for _ in range(WARM_REQUESTS)]
    return {
        "cold_s": cold_s,
        "warm_s": statistics.median(warm),
        "top_tasks_s": statistics.median(best),
        "answer_bytes": len(answer.content),
        "rss_growth_mib": (after_cold - before) / 2**20,
        "rss_growth_after_all_mib": (memory_bytes(served) - before) / 2**20,
        "one_task_alone_p50_ms": 1000 * statistics.median(alone),
        "one_task_alone_p95_ms": 1000 * statistics.quantiles(alone, n=20)[-1],
        "one_task_beside_p50_ms": 1000 * statistics.median(beside),
        "one_task_beside_p95_ms": 1000 * statistics.quantiles(beside, n=20)[-1],
    }


@contextmanager
def asking(url: str) -> Iterator[list[float]]:
    """Ask one task in a loop until the block ends; yields the seconds of each request."""
    seconds: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            seconds.append(timed(url, {})[0])

    thread = threading.Thread(target=ask)
    thread.start()
    yield seconds
    stop.set()
    thread.join()


def timed(url: str, headers: dict[str, str]) -> tuple[float, httpx.Response]:
    headers = {"content-type": "image/png", **headers}
    started = time.perf_counter()
    response = _http.post(url, content=_IMAGE, headers=headers)
    return time.perf_counter() - started, response.raise_for_status()


def memory_bytes(served: Served) -> int:
    process = psutil.Process(served.process.pid)
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])


def _image() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


_IMAGE = _image()
_http = httpx.Client(timeout=300)

if __name__ == "__main__":
    main()
