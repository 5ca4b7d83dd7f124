"""Share of a client that sends single images, next to clients that send 64 images per request.

    python -m benchmarks.fairness --bundle prompt_serve/assets/embedded

Every client has a key of its own. Three loads alternate in every round:

* alone: the client of single images has the service for itself;
* fair: the others send single images as well, so that its rate is its fair share;
* heavy: the others send requests of many images, over several connections each.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import http_throughput as http
from benchmarks.http_client import read_answer
from prompt_serve.service.permissions import Role
from tests.service.process import service
from tests.service.secured_service import make_keys

_BOUNDARY = b"part"


def main() -> None:
    options = parse()
    if options.port:
        print(json.dumps(asyncio.run(latencies(options))))
        return
    names = ["single", *(f"other{n}" for n in range(options.others))]
    bundle = http.prepared_bundle(options)
    with tempfile.TemporaryDirectory() as folder:
        images = http.write_images(Path(folder) / "images", options.size)
        home = Path(folder) / "home"
        home.mkdir()
        roles: dict[str, Role] = {"admin": "admin", **dict.fromkeys(names, "infer")}
        keys = make_keys(home, **roles)
        with service(home, bundle, device=options.device) as served:
            http.add_tasks(served, 1, 10, keys.pop("admin"))
            port = served.url.rpartition(":")[2]
            measure(options, images, port, list(keys.values()))


def parse() -> argparse.Namespace:
    parser = http.load_options(__doc__, seconds=10)
    add = parser.add_argument
    add("--others", type=int, default=4, help="other clients [default: %(default)s]")
    add("--images", type=int, default=64, help="images of their requests [default: %(default)s]")
    add("--connections", type=int, default=1, help="connections of each [default: %(default)s]")
    add("--port", type=int, default=0, help=argparse.SUPPRESS)
    add("--keys", nargs="+", help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, images: Path, port: str, keys: Sequence[str]) -> None:
    loads = {
        "alone": ["--others", "0"],
        "fair": ["--images", "1", "--connections", "1"],
        "heavy": ["--images", str(options.images), "--connections", str(options.connections)],
    }
    found: dict[str, list[float]] = {name: [] for name in loads}
    for _ in range(options.rounds):
        for name, load in loads.items():
            arguments = ["--port", port, "--keys", *keys, "--folder", str(images)]
            arguments += ["--seconds", str(options.seconds), *load]
            command = [sys.executable, "-m", "benchmarks.fairness", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] += json.loads(done.stdout)
    seconds = options.rounds * options.seconds
    print(f"{'load':>8} {'images/s':>9} {'p50 ms':>8} {'p99 ms':>8}")
    for name, of_load in found.items():
        p50, p99 = np.percentile(of_load, [50, 99]) * 1000
        print(f"{name:>8} {len(of_load) / seconds:>9.2f} {p50:>8.0f} {p99:>8.0f}")
    p99_fair, p99_heavy = (np.percentile(found[name], 99) for name in ("fair", "heavy"))
    print(
        f"heavy / fair: rate {len(found['heavy']) / len(found['fair']):.2f} (goal >= 0.4), "
        f"p99 {p99_heavy / p99_fair:.2f} (goal <= 3)"
    )


async def latencies(options: argparse.Namespace) -> list[float]:
    """Return the latencies of the single images, in seconds. Runs in a process of its own."""
    files = [path.read_bytes() for path in sorted(options.folder.iterdir())]
    single_key, *other_keys = options.keys
    others = [
        asyncio.create_task(ask(options.port, request(files[: options.images], key), []))
        for key in other_keys[: options.others]
        for _ in range(options.connections)
    ]
    await asyncio.sleep(1)  # until they have filled the queue
    found: list[float] = []
    single = asyncio.create_task(ask(options.port, request(files[:1], single_key), found))
    await asyncio.sleep(options.seconds)
    for task in (single, *others):
        task.cancel()
    await asyncio.gather(single, *others, return_exceptions=True)
    return found


async def ask(port: int, message: bytes, found: list[float]) -> None:
    """Send a request again and again; append the latencies of its answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            started = time.perf_counter()
            writer.write(message)
            status = await read_answer(reader)
            if status != 200:  # 429: the queue is full
                await asyncio.sleep(0.1)
                continue
            found.append(time.perf_counter() - started)
    finally:
        writer.close()


def request(files: Sequence[bytes], key: str) -> bytes:
    """Return a request to classify ``files``."""
    part = b'--%s\r\nContent-Disposition: form-data; name="image"; filename="i.jpg"\r\n\r\n%s\r\n'
    body = b"".join(part % (_BOUNDARY, file) for file in files) + b"--%s--\r\n" % _BOUNDARY
    return (
        b"POST /v1/classify?task=bench-0 HTTP/1.1\r\nHost: localhost\r\n"
        b"Authorization: Bearer %s\r\nContent-Type: multipart/form-data; boundary=%s\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (key.encode(), _BOUNDARY, len(body), body)
    )


if __name__ == "__main__":
    main()
