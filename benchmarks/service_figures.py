"""Throughput and latency of the service under different loads, each compared with a reference.

    python -m benchmarks.service_figures mixed      1,000 tasks mixed uniformly against one task
    python -m benchmarks.service_figures fan-out    one image by 100 tasks against one task
    python -m benchmarks.service_figures upload     time from upload to the first prediction
    python -m benchmarks.service_figures swaps      latency with 20 version swaps per second
    python -m benchmarks.service_figures overload   five times the peak request rate

The options of ``http_throughput`` for bundle, images and rounds apply here as well. Both sides
alternate within one run, so that other load on the machine affects both; ratios are of the sums
over all rounds.
"""

import argparse
import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks import http_throughput as http
from benchmarks.http_client import prepare, read_answer
from tests.service.process import Served, service

MIXED_TASKS, FAN_OUT_TASKS, FAN_OUT_CLASSES, UPLOADS, UPLOAD_CLASSES = 1000, 100, 100, 100, 100
SWAPS_PER_SECOND, OVERLOAD = 20, 5


def main() -> None:
    options = parse()
    FIGURES[options.figure](options)


def parse() -> argparse.Namespace:
    parser = http.load_options(__doc__, seconds=15)
    parser.add_argument("figure", choices=sorted(FIGURES))
    return parser.parse_args()


@dataclass(frozen=True)
class Started:
    """Empty service, and images to send."""

    served: Served
    images: Path
    first: bytes


@contextlib.contextmanager
def started(options: argparse.Namespace, **settings: str) -> Iterator[Started]:
    bundle = http.prepared_bundle(options)
    with tempfile.TemporaryDirectory() as folder:
        images = http.write_images(Path(folder) / "images", options.size)
        home = Path(folder) / "home"
        with service(home, bundle, device=options.device, **settings) as served:
            yield Started(served, images, min(images.iterdir()).read_bytes())


def mixed(options: argparse.Namespace) -> None:
    """Measure HTTP throughput with one task, and with a thousand tasks in turn."""
    with started(options) as here:
        http.add_tasks(here.served, MIXED_TASKS, 10)
        options.tasks = MIXED_TASKS
        http.run_client(here.served, here.images, options, seconds=3)  # loads every task
        rates: dict[int, list[float]] = {1: [], MIXED_TASKS: []}
        failed = 0
        for _ in range(options.rounds):
            for count, found in rates.items():
                options.tasks = count
                load = http.run_client(here.served, here.images, options)
                found.append(load.images_per_s)
                failed += sum(n for status, n in load.statuses.items() if status != "200")
    one, many = (sum(found) for found in rates.values())
    print(f"concurrency {options.concurrency}: {one / options.rounds:.2f} images/s by one task, "
          f"{many / options.rounds:.2f} by {MIXED_TASKS:,} in turn, ratio {many / one:.3f}, "
          f"failed {failed}")  # fmt: skip


def fan_out(options: argparse.Namespace) -> None:
    """Measure the latency of one image, by one task of a hundred classes and by a hundred."""
    with started(options) as here, httpx.Client(base_url=here.served.url, timeout=600) as client:
        http.add_tasks(here.served, FAN_OUT_TASKS, FAN_OUT_CLASSES)
        names = [f"bench-{n}" for n in range(FAN_OUT_TASKS)]

        def ask(tasks: list[str]) -> None:
            query: dict[str, str | list[str]] = {"task": tasks, "top_k": "1"}
            headers = {"content-type": "image/jpeg"}
            url = "/v1/classify"
            client.post(url, params=query, content=here.first, headers=headers).raise_for_status()

        one, many = alternating(options, lambda: ask(names[:1]), lambda: ask(names))
    print(f"one task {one:.1f} ms, {FAN_OUT_TASKS} tasks of {FAN_OUT_CLASSES} classes "
          f"{many:.1f} ms, ratio {many / one:.3f} (medians)")  # fmt: skip


def alternating(
    options: argparse.Namespace, first: Callable[[], None], second: Callable[[], None]
) -> tuple[float, float]:
    """Return the median milliseconds of both calls, in alternation."""
    for ask in (first, second) * 3:
        ask()
    found: tuple[list[float], list[float]] = ([], [])
    give_up = time.perf_counter() + options.rounds * options.seconds
    while time.perf_counter() < give_up:
        for ask, times in zip((first, second), found, strict=True):
            began = time.perf_counter()
            ask()
            times.append(1000 * (time.perf_counter() - began))
    return float(np.median(found[0])), float(np.median(found[1]))


def upload(options: argparse.Namespace) -> None:
    """Measure the time from uploading a hundred new class names to the response.

    A task of plain class names takes the same path as a prompt file from the text graph on.
    """
    with started(options) as here, httpx.Client(base_url=here.served.url, timeout=600) as client:
        times, stale = [], 0
        for n in range(UPLOADS):
            names = [f"thing {n} of kind {c}" for c in range(UPLOAD_CLASSES)]
            began = time.perf_counter()
            made = client.post("/v1/tasks", json={"name": "fresh", "class_names": names})
            times.append(1000 * (time.perf_counter() - began))
            made.raise_for_status()
            stale += version_that_answers(client, here.first) != made.json()["version"]
    p50, p99 = np.percentile(times, [50, 99])
    print(f"{UPLOADS} uploads of {UPLOAD_CLASSES} classes: answered after p50 {p50:.0f} ms, "
          f"p99 {p99:.0f} ms; {stale} requests after it got another version")  # fmt: skip


def version_that_answers(client: httpx.Client, image: bytes) -> str:
    headers = {"content-type": "image/jpeg"}
    answer = client.post("/v1/classify?task=fresh", content=image, headers=headers).json()
    return str(answer["results"][0]["predictions"][0]["version"])


def swaps(options: argparse.Namespace) -> None:
    """Measure latency with and without a task that is swapped continuously.

    The two versions that alternate under one name are known to the service, so this measures the
    cost of swaps, not of the text encoder.
    """
    with started(options) as here:
        http.add_tasks(here.served, 3, 100)
        found: dict[bool, list[float]] = {False: [], True: []}
        made = 0
        for _ in range(options.rounds):
            for swapping, times in found.items():
                with swapped(here.served) if swapping else contextlib.nullcontext([0]) as count:
                    options.tasks = 1
                    load = http.run_client(here.served, here.images, options, concurrency=2)
                times += load.latencies_ms
                made += count[0]
    seconds = options.rounds * options.seconds
    (quiet50, quiet99), (busy50, busy99) = (
        np.percentile(found[s], [50, 99]) for s in (False, True)
    )
    print(f"{made / seconds:.1f} swaps/s: p50 {quiet50:.0f} -> {busy50:.0f} ms, "
          f"p99 {quiet99:.0f} -> {busy99:.0f} ms, ratio of p99 {busy99 / quiet99:.3f}")  # fmt: skip


@contextlib.contextmanager
def swapped(served: Served) -> Iterator[list[int]]:
    """Point a name at two tasks in turn, ``SWAPS_PER_SECOND`` times per second; count the swaps."""
    stop, count = threading.Event(), [0]

    def swap() -> None:
        with httpx.Client(base_url=served.url, timeout=600) as client:
            began = time.perf_counter()
            while not stop.wait(
                max(0.0, began + count[0] / SWAPS_PER_SECOND - time.perf_counter())
            ):
                body = {"of": f"bench-{1 + count[0] % 2}"}
                client.put("/v1/tasks/swapped/alias", json=body).raise_for_status()
                count[0] += 1

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()


def overload(options: argparse.Namespace) -> None:
    """Send requests at five times the peak rate, without waiting for responses.

    The queue is just long enough for the peak, so that surplus requests are rejected at once.
    """
    length = options.concurrency
    with started(options, max_queue_images=str(max(64, length)), max_images=str(length)) as here:
        http.add_tasks(here.served, 1, 10)
        options.tasks = 1
        worker = max(psutil.Process(here.served.process.pid).children(recursive=True), key=_rss)
        peak = http.run_client(here.served, here.images, options).images_per_s
        before = _rss(worker)
        seconds = options.rounds * options.seconds
        answers = asyncio.run(flood(here, OVERLOAD * peak, seconds))
        grown = (_rss(worker) - before) / 2**20
    refused = [ms for status, ms in answers if status == 429]
    good = sum(status == 200 for status, _ in answers)
    others = len(answers) - good - len(refused)
    p50, p99 = np.percentile(refused, [50, 99])
    print(f"peak {peak:.2f} images/s; {len(answers) / seconds:.1f} requests/s came, "
          f"{good / seconds:.2f} were answered (ratio {good / seconds / peak:.3f}), "
          f"{len(refused)} refused after p50 {p50:.1f} ms, p99 {p99:.1f} ms, {others} others; "
          f"memory {grown:+.0f} MiB")  # fmt: skip


async def flood(here: Started, rate: float, seconds: float) -> list[tuple[int, float]]:
    """Send requests at ``rate`` without waiting; return their status and milliseconds."""
    requests = prepare(sorted(here.images.iterdir()), 1)
    port = int(here.served.url.rpartition(":")[2])

    async def ask(request: bytes) -> tuple[int, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.perf_counter()
        writer.write(request)
        status = await read_answer(reader)
        took_ms = 1000 * (time.perf_counter() - began)
        writer.close()
        return status, took_ms

    began = time.perf_counter()
    asked: list[asyncio.Task[tuple[int, float]]] = []
    while (now := time.perf_counter()) < began + seconds:
        await asyncio.sleep(max(0.0, began + len(asked) / rate - now))
        asked.append(asyncio.create_task(ask(requests[len(asked) % len(requests)])))
    return await asyncio.gather(*asked)


def _rss(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "mixed": mixed,
    "fan-out": fan_out,
    "upload": upload,
    "swaps": swaps,
    "overload": overload,
}

if __name__ == "__main__":
    main()
