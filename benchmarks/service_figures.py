"""Figures of the service that compare two ways of asking it, in turns in one run.

    python -m benchmarks.service_figures mixed      1,000 tasks mixed uniformly against one task
    python -m benchmarks.service_figures fan-out    one image by 100 tasks against one task
    python -m benchmarks.service_figures upload     a prompt file sent -> it answers

Options of ``http_throughput`` for the bundle, images and rounds hold here as well. Turns alternate,
so that whatever else the machine does meets both sides; a ratio is of the sums over all rounds.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from benchmarks import http_throughput as http
from tests.service.process import Served, service

MIXED_TASKS, FAN_OUT_TASKS, FAN_OUT_CLASSES, UPLOADS, UPLOAD_CLASSES = 1000, 100, 100, 100, 100


def main() -> None:
    options = parse()
    {"mixed": mixed, "fan-out": fan_out, "upload": upload}[options.figure](options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("figure", choices=["mixed", "fan-out", "upload"])
    add("--bundle", type=Path, help="an exported backbone; default: exported once from --model")
    add("--model", default="ViT-B-16/random", help="backbone to export [default: %(default)s]")
    add("--precision", default="int8", help="of the image encoder [default: %(default)s]")
    add("--device", default="cpu", help="cpu or cuda[:N] [default: %(default)s]")
    add("--cache", type=Path, default=Path("~/.cache/prompt-serve/benchmarks").expanduser())
    add("--concurrency", type=int, default=32, help="requests in flight [default: %(default)s]")
    add("--seconds", type=float, default=15, help="of each turn [default: %(default)s]")
    add("--rounds", type=int, default=3, help="turns of each side [default: %(default)s]")
    add("--size", type=int, nargs=2, default=(500, 375), help="of the JPEG images, in pixels")
    return parser.parse_args()


@dataclass(frozen=True)
class Started:
    """A service with nothing in it yet, and images to send."""

    served: Served
    images: Path
    first: bytes


@contextlib.contextmanager
def started(options: argparse.Namespace) -> Iterator[Started]:
    bundle = http.prepared_bundle(options)
    with tempfile.TemporaryDirectory() as folder:
        images = http.write_images(Path(folder) / "images", options.size)
        with service(Path(folder) / "home", bundle, device=options.device) as served:
            yield Started(served, images, min(images.iterdir()).read_bytes())


def mixed(options: argparse.Namespace) -> None:
    """Throughput over HTTP, each request by one task: always the same, or one of a thousand."""
    with started(options) as here:
        http.add_tasks(here.served, MIXED_TASKS, 10)
        options.tasks = MIXED_TASKS
        http.run_client(here.served, here.images, options, seconds=3)  # every task is loaded
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
    """Latency of one image, by one task of a hundred classes or by a hundred such."""
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
    """Median milliseconds of both, asked one after the other."""
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
    """From sending a hundred class names that are new to the service to an answer by them.

    A task of plain class names takes the way of an uploaded prompt file from the text graph on.
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


if __name__ == "__main__":
    main()
