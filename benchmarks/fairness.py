"""Share of a client that sends single images, next to four clients with other requests.

    python -m benchmarks.fairness --bundle prompt_serve/assets/embedded

Every client has a key of its own. In every round these loads take turns:

* alone: the client of single images has the service for itself;
* fair: the others send single images as well, so that its rate is its fair share;
* every other one of ``LOADS``: the others send such requests, without a break.
"""

import argparse
import asyncio
import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import http_throughput as http
from benchmarks.http_client import read_answer
from prompt_serve.bundle import open_bundle
from prompt_serve.service.permissions import Permissions, Role
from tests.service.process import service
from tests.service.secured_service import make_keys

GOAL, GOAL_P99 = 0.4, 3.0
TASKS = 200
EMBEDDINGS = "embeddings.npy"
_BOUNDARY = b"part"


def main() -> None:
    options = parse()
    if options.load:
        print(json.dumps(asyncio.run(latencies(options))))
        return
    names = ["single", *(f"other{n}" for n in range(options.others))]
    bundle = http.prepared_bundle(options)
    with tempfile.TemporaryDirectory() as folder:
        images = http.write_images(Path(folder) / "images", options.size)
        width = open_bundle(bundle).manifest.backbone.embed_dim
        np.save(images / EMBEDDINGS, np.random.default_rng(0).normal(size=(512, width)))
        home = Path(folder) / "home"
        home.mkdir()
        roles: dict[str, Role | Permissions] = dict.fromkeys(["admin", *names], "admin")
        keys = make_keys(home, **roles)
        with service(home, bundle, device=options.device) as served:
            http.add_tasks(served, TASKS, 10, keys.pop("admin"))
            port = served.url.rpartition(":")[2]
            measure(options, images, port, list(keys.values()))


def parse() -> argparse.Namespace:
    parser = http.load_options(__doc__, seconds=10)
    add = parser.add_argument
    add("--others", type=int, default=4, help="other clients [default: %(default)s]")
    add("--connections", type=int, default=1, help="connections of each [default: %(default)s]")
    add("--loads", nargs="+", choices=list(LOADS), default=list(LOADS), help="all by default")
    add("--load", choices=[*LOADS, "alone", "fair"], help=argparse.SUPPRESS)
    add("--port", type=int, default=0, help=argparse.SUPPRESS)
    add("--keys", nargs="+", help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, images: Path, port: str, keys: Sequence[str]) -> None:
    found: dict[str, list[float]] = {name: [] for name in ["alone", "fair", *options.loads]}
    for _ in range(options.rounds):
        for load in found:
            arguments = ["--port", port, "--keys", *keys, "--folder", str(images), "--load", load]
            arguments += ["--seconds", str(options.seconds), "--others", str(options.others)]
            arguments += ["--connections", str(options.connections)]
            command = [sys.executable, "-m", "benchmarks.fairness", *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[load] += json.loads(done.stdout)
    seconds = options.rounds * options.seconds
    print(f"goal: of the fair share >= {GOAL:g}, p99 <= {GOAL_P99:g} times that of fair")
    print(f"{'load':>16} {'images/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'share':>6} {'p99':>6}")
    p99_fair = np.percentile(found["fair"], 99)
    for load, of_load in found.items():
        p50, p99 = np.percentile(of_load, [50, 99])
        share = len(of_load) / len(found["fair"])
        print(
            f"{load:>16} {len(of_load) / seconds:>9.2f} {1000 * p50:>8.0f} {1000 * p99:>8.0f} "
            f"{share:>6.2f} {p99 / p99_fair:>6.2f}"
        )


async def latencies(options: argparse.Namespace) -> list[float]:
    """Return the latencies of the single images, in seconds. Runs in a process of its own."""
    single_key, *other_keys = options.keys
    single = fair(options.folder, single_key)
    others = []
    if options.load != "alone":
        make = LOADS.get(options.load, fair)
        others = [
            asyncio.create_task(ask(options.port, make(options.folder, key), []))
            for key in other_keys
            for _ in range(options.connections if options.load in LOADS else 1)
        ]
    await asyncio.sleep(1)  # until they have filled the queue
    found: list[float] = []
    asking = asyncio.create_task(ask(options.port, single, found))
    await asyncio.sleep(options.seconds)
    for task in (asking, *others):
        if task.done():
            task.result()  # raises what ended it
        task.cancel()
    await asyncio.gather(asking, *others, return_exceptions=True)
    return found


async def ask(port: int, messages: Iterator[bytes], found: list[float]) -> None:
    """Send one request after the other; append the latencies of the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        for message in messages:
            started = time.perf_counter()
            writer.write(message)
            status = await read_answer(reader)
            if status == 429:  # the queue is full
                await asyncio.sleep(0.1)
            elif status in (200, 201):
                found.append(time.perf_counter() - started)
            else:
                raise RuntimeError(f"status {status} for {message[:120]!r}")
    finally:
        writer.close()


# Requests of the others: an endless iterator, made of a folder of images and a key.

Requests = Callable[[Path, str], Iterator[bytes]]


def fair(folder: Path, key: str) -> Iterator[bytes]:
    return itertools.repeat(images(jpegs(folder)[:1], key))


def many_images(folder: Path, key: str) -> Iterator[bytes]:
    return itertools.repeat(images(jpegs(folder), key))


def photographs(kind: str) -> Requests:
    def make(folder: Path, key: str) -> Iterator[bytes]:
        file = io.BytesIO()
        with Image.open(io.BytesIO(jpegs(folder)[0])) as image:
            image.resize((4000, 3000)).save(file, kind)
        return itertools.repeat(images([file.getvalue()] * 8, key))

    return make


def every_task(folder: Path, key: str) -> Iterator[bytes]:
    return itertools.repeat(images(jpegs(folder)[:16], key, task="*"))


def class_names(folder: Path, key: str) -> Iterator[bytes]:
    for n in itertools.count():
        names = [f"thing {n} {key[-8:]} {c}" for c in range(1000)]
        body = {"name": f"new-{key[-8:].lower().strip('-_')}", "class_names": names}
        yield message("POST", "/v1/tasks", key, "application/json", json.dumps(body).encode())


def embeddings(folder: Path, key: str) -> Iterator[bytes]:
    path, body = "/v1/score?task=*&top_k=1", (folder / EMBEDDINGS).read_bytes()
    return itertools.repeat(message("POST", path, key, "application/x-npy", body))


def lists(folder: Path, key: str) -> Iterator[bytes]:
    return itertools.repeat(message("GET", f"/v1/tasks?limit={TASKS}", key, "", b""))


LOADS: dict[str, Requests] = {
    "64 images": many_images,
    "12 MP JPEG": photographs("JPEG"),
    "12 MP WebP": photographs("WEBP"),
    "every task": every_task,
    "new class names": class_names,
    "embeddings": embeddings,
    "lists": lists,
}


def jpegs(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def images(files: Sequence[bytes], key: str, task: str = "bench-0") -> bytes:
    """Return a request to classify ``files``."""
    part = b'--%s\r\nContent-Disposition: form-data; name="image"; filename="i.jpg"\r\n\r\n%s\r\n'
    body = b"".join(part % (_BOUNDARY, file) for file in files) + b"--%s--\r\n" % _BOUNDARY
    kind = f"multipart/form-data; boundary={_BOUNDARY.decode()}"
    return message("POST", f"/v1/classify?task={task}", key, kind, body)


def message(method: str, path: str, key: str, kind: str, body: bytes) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {key}",
        f"Content-Length: {len(body)}",
        *([f"Content-Type: {kind}"] if kind else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


if __name__ == "__main__":
    main()
