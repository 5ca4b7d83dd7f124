"""CPU of the service per request beside its encoder, and what its processes deliver.

    python -m benchmarks.front                       CPU and latency per request, of one process
    python -m benchmarks.front --workers 1 2 4 8     what so many processes deliver on one device
    python -m benchmarks.front --against CHECKOUT    in turns with the service of another checkout

The encoder is a graph without work, of 32 x 32 pixels: decoding and encoding are measured apart, in
this process, and are small. With several processes it also waits ``--encoder-ms`` per image, as a
device that all share (``benchmarks.null_service``). The client is a process of its own, whose CPU
does not count, but which takes a part of the machine.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import psutil
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from prompt_serve.bundle import MANIFEST, digest_file, manifest_json, open_bundle, shipped_bundle
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.service.http.tensor_bodies import npy_bytes
from tests.service.process import Served, service

SIDE = 32
WARM_UP_S = 1.0
NULL_SERVICE = "benchmarks.null_service:PromptServe"


@dataclass(frozen=True)
class Measured:
    """One load on the service."""

    requests_per_s: float
    server_ms: float  # CPU per request
    client_ms: float
    p50_ms: float
    p99_ms: float
    failed: int


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = null_bundle(folder / "bundle")
        if options.workers:
            scaling(options, folder, bundle)
        elif options.against:
            compare(options, folder, bundle)
        else:
            with service(folder / "home", bundle, **dict(map(pair, options.set))) as served:
                add_task(served)
                per_request(options, folder, served, bundle)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[], help="numbers of processes to compare")
    add("--encoder-ms", type=float, default=0.125, help="per image [default: %(default)s]")
    add("--against", type=Path, help="another checkout, whose service is measured in turns")
    add("--concurrency", type=int, default=16, help="requests in flight [default: %(default)s]")
    add("--clients", type=int, default=1, help="client processes [default: %(default)s]")
    add("--seconds", type=float, default=5, help="seconds per load [default: %(default)s]")
    add("--rounds", type=int, default=3, help="loads of each kind [default: %(default)s]")
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the service")
    return parser.parse_args()


def pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def null_bundle(path: Path) -> Path:
    """Write the embedded backbone with an image encoder that returns one vector for all images."""
    shutil.copytree(shipped_bundle("embedded"), path)
    manifest = open_bundle(path).manifest
    feature = np.zeros((1, manifest.backbone.embed_dim), dtype=np.float32)
    feature[0, 0] = 1
    constants: dict[str, np.ndarray] = {
        "feature": feature,
        "width": np.array([feature.shape[1]], dtype=np.int64),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["pixels"], ["batch"], start=0, end=1),
            helper.make_node("Concat", ["batch", "width"], ["shape"], axis=0),
            helper.make_node("Expand", ["feature", "shape"], ["image_features"]),
        ],
        "null",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["B", None])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    encoder = path / "image_encoder.onnx"
    onnx.save(model, encoder)
    preprocessing = replace(manifest.preprocessing, image_size=SIDE)
    files = {**manifest.files, encoder.name: digest_file(encoder)}
    changed = manifest.model_copy(update={"preprocessing": preprocessing, "files": files})
    (path / MANIFEST).write_text(manifest_json(changed))
    return path


def add_task(served: Served) -> None:
    body = {"name": "bench", "class_names": [f"thing {n}" for n in range(10)]}
    httpx.post(f"{served.url}/v1/tasks", json=body, timeout=60).raise_for_status()


def requests_by_kind() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    pixels = rng.random((SIDE, SIDE, 3), dtype=np.float32)
    jpeg = io.BytesIO()
    Image.fromarray((255 * pixels).astype(np.uint8)).save(jpeg, "JPEG")
    return {
        "/livez": get("/livez"),
        "/v1/info": get("/v1/info"),
        "classify JPEG": post("image/jpeg", jpeg.getvalue()),
        "classify pixels": post("application/x-npy", npy_bytes(pixels[np.newaxis])),
    }


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(kind: str, body: bytes) -> bytes:
    head = (
        f"POST /v1/classify?task=bench HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def per_request(options: argparse.Namespace, folder: Path, served: Served, bundle: Path) -> None:
    requests = requests_by_kind()
    jpeg = requests["classify JPEG"].partition(b"\r\n\r\n")[2]
    decode_ms, encode_ms, raw_ms = alone(bundle, jpeg)
    print(f"alone: decode {decode_ms:.3f} ms, encode {encode_ms:.3f} ms of CPU per image")
    print(f"{'request':>16} {'concurrency':>11} {'requests/s':>10} {'server ms':>9} "
          f"{'client ms':>9} {'p50 ms':>7} {'p99 ms':>7} failed")  # fmt: skip
    for concurrency in (options.concurrency, 1):
        for kind, request in requests.items():
            found = median_of(
                [load(options, folder, served, request, concurrency) for _ in range(options.rounds)]
            )
            print(f"{kind:>16} {concurrency:>11} {found.requests_per_s:>10.0f} "
                  f"{found.server_ms:>9.3f} {found.client_ms:>9.3f} {found.p50_ms:>7.2f} "
                  f"{found.p99_ms:>7.2f} {found.failed}")  # fmt: skip
            if concurrency == 1 and kind == "classify JPEG":
                print(f"{'':>16} added to decode + batch of one: {found.p50_ms - raw_ms:.2f} ms")


def compare(options: argparse.Namespace, folder: Path, bundle: Path) -> None:
    """Measure both services in turns: what else the machine does is then the same for both."""
    settings = dict(map(pair, options.set))
    with (
        service(folder / "now", bundle, **settings) as now,
        service(folder / "other", bundle, checkout=str(options.against), **settings) as other,
    ):
        add_task(now)
        add_task(other)
        print(f"{options.against} and here, each figure of both in this order")
        print(f"{'request':>16} {'concurrency':>11} {'server ms':>15} {'ratio':>5} "
              f"{'requests/s':>11} {'p50 ms':>11} failed")  # fmt: skip
        for concurrency in (options.concurrency, 1):
            for kind, request in requests_by_kind().items():
                turns = [
                    [load(options, folder, one, request, concurrency) for one in (other, now)]
                    for _ in range(options.rounds)
                ]
                old, new = (median_of(loads) for loads in zip(*turns, strict=True))
                ratio = float(np.median([a.server_ms / b.server_ms for a, b in turns]))
                print(f"{kind:>16} {concurrency:>11} {old.server_ms:>7.3f} {new.server_ms:>7.3f} "
                      f"{ratio:>5.2f} {old.requests_per_s:>5.0f} {new.requests_per_s:>5.0f} "
                      f"{old.p50_ms:>5.2f} {new.p50_ms:>5.2f} "
                      f"{old.failed + new.failed}")  # fmt: skip


def scaling(options: argparse.Namespace, folder: Path, bundle: Path) -> None:
    request = requests_by_kind()["classify pixels"]
    lock = folder / "device"
    lock.touch()
    os.environ |= {"NULL_ENCODER_MS": str(options.encoder_ms), "NULL_ENCODER_LOCK": str(lock)}
    limit = 1000 / options.encoder_ms if options.encoder_ms else float("inf")
    print(f"{os.cpu_count()} cores, {options.encoder_ms} ms per image: at most {limit:.0f}/s")
    print(
        f"{'processes':>9} {'images/s':>9} {'server ms':>9} {'client ms':>9} {'p50 ms':>7} failed"
    )
    for n in options.workers:
        settings = {"workers": str(n)} | dict(map(pair, options.set))
        home = folder / f"home-{n}"
        with service(home, bundle, target=NULL_SERVICE, **settings) as served:
            add_task(served)
            found = median_of(
                [
                    load(options, folder, served, request, options.concurrency)
                    for _ in range(options.rounds)
                ]
            )
        print(f"{n:>9} {found.requests_per_s:>9.0f} {found.server_ms:>9.3f} "
              f"{found.client_ms:>9.3f} {found.p50_ms:>7.2f} {found.failed}")  # fmt: skip


def median_of(loads: Sequence[Measured]) -> Measured:
    """Return the load with the median CPU per request."""
    return sorted(loads, key=lambda one: one.server_ms)[len(loads) // 2]


def alone(bundle_path: Path, jpeg: bytes) -> tuple[float, float, float]:
    """Return the CPU of decoding and of encoding one image, and the wall-clock time of both."""
    bundle = open_bundle(bundle_path)
    session = ort.InferenceSession(str(bundle.image_encoder), providers=["CPUExecutionProvider"])
    pixels = pixels_from_bytes(jpeg, bundle.manifest.preprocessing)[np.newaxis]

    def decode() -> None:
        pixels_from_bytes(jpeg, bundle.manifest.preprocessing)

    def encode() -> None:
        session.run(None, {"pixels": pixels})

    def both() -> None:
        decode()
        encode()

    wall = [timed(both, time.perf_counter) for _ in range(500)]
    return cpu_ms(decode), cpu_ms(encode), 1000 * float(np.median(wall))


def cpu_ms(work: Callable[[], None], times: int = 1000) -> float:
    def repeated() -> None:
        for _ in range(times):
            work()

    return 1000 * timed(repeated, time.process_time) / times


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def load(
    options: argparse.Namespace, folder: Path, served: Served, request: bytes, concurrency: int
) -> Measured:
    """Send one request again and again."""
    file = folder / "request"
    file.write_bytes(request)
    per_client = max(1, concurrency // options.clients)
    return measured(served, file, per_client, clients=options.clients, seconds=options.seconds)


def measured(
    served: Served, request: Path, concurrency: int, *, clients: int, seconds: float
) -> Measured:
    """Send a request from all clients at once, after a warm-up that does not count.

    Args:
        served: the service.
        request: file with the complete request.
        concurrency: requests in flight of each client.
        clients: number of client processes.
        seconds: of the load.
    """

    def run(seconds: float) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(clients) as pool:
            return list(
                pool.map(partial(client, served, request, concurrency), [seconds] * clients)
            )

    run(WARM_UP_S)
    before = cpu_s(served)
    answers = run(seconds)
    used = cpu_s(served) - before
    latencies = 1000 * np.concatenate([answer["latencies_s"] for answer in answers])
    return Measured(
        requests_per_s=len(latencies) / max(answer["seconds"] for answer in answers),
        server_ms=1000 * used / len(latencies),
        client_ms=1000 * sum(answer["cpu_s"] for answer in answers) / len(latencies),
        p50_ms=float(np.percentile(latencies, 50)),
        p99_ms=float(np.percentile(latencies, 99)),
        failed=len(latencies) - sum(answer["statuses"].get("200", 0) for answer in answers),
    )


def client(served: Served, request: Path, concurrency: int, seconds: float) -> dict[str, Any]:
    arguments = {
        "--port": served.url.rpartition(":")[2],
        "--request": request,
        "--concurrency": concurrency,
        "--seconds": seconds,
    }
    flat = [str(part) for one in arguments.items() for part in one]
    command = [sys.executable, str(Path(__file__).with_name("http_client.py")), *flat]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def cpu_s(served: Served) -> float:
    """Return the CPU that all processes of the service have used."""
    parent = psutil.Process(served.process.pid)
    times = [one.cpu_times() for one in (parent, *parent.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


if __name__ == "__main__":
    main()
