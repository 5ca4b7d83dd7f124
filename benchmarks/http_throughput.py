"""HTTP throughput relative to the raw ONNX Runtime session, and latency added per request.

    python -m benchmarks.http_throughput --model ViT-B-16/random --precision int8

Both alternate within one run, so that other load on the machine affects both:

* raw: the image encoder alone, in a process without a service, with default session options, on
  decoded pixels, at the service's batch size;
* http: JPEG files sent to ``bentoml serve`` from a client process (``http_client``).

The client shares the cores with the service, so its CPU is counted apart: the last column is the
ratio on what it leaves to the service.

The same is then measured for single requests: raw is decode + preprocess + a batch of one.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
from PIL import Image

from prompt_serve.bundle import MANIFEST, Bundle, open_bundle
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.service.settings import Settings
from prompt_serve.types import PixelArray
from tests.service.process import Served, service

N_IMAGES = 64


@dataclass(frozen=True)
class Load:
    """Measurements of the client process."""

    seconds: float
    statuses: Counter[str]
    latencies_ms: Sequence[float]
    cpu_s: float  # of the client

    @property
    def images_per_s(self) -> float:
        return len(self.latencies_ms) / self.seconds

    @property
    def left_to_service(self) -> float:
        """Share of the machine's CPU that the client did not use."""
        return 1 - self.cpu_s / (self.seconds * available_cores())


def main() -> None:
    options = parse()
    bundle = open_bundle(prepared_bundle(options))
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder) / "images", options.size)
        files = [path.read_bytes() for path in sorted(images.iterdir())]
        with service(Path(folder) / "home", bundle.path, device=options.device) as served:
            add_tasks(served, options.tasks, options.classes)
            session = raw_session(bundle, options.device)
            batch = options.batch or Settings(device=options.device).batch_size
            throughput(options, served, session, images, pixels_of(bundle, files[:batch]))
            latency(options, served, session, images, bundle, files)


def parse() -> argparse.Namespace:
    parser = load_options(__doc__, seconds=20)
    add = parser.add_argument
    add("--tasks", type=int, default=1, help="number of tasks, used in turn [default: %(default)s]")
    add("--classes", type=int, default=10, help="classes per task [default: %(default)s]")
    add("--batch", type=int, help="batch size of the raw session; default: the service's")
    return parser.parse_args()


def load_options(description: str | None, seconds: float) -> argparse.ArgumentParser:
    """Build the options shared by all benchmarks of a running service."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bundle", type=Path, help="exported backbone; default: exported once from --model")
    add("--model", default="ViT-B-16/random", help="backbone to export [default: %(default)s]")
    add("--precision", default="int8", help="precision of the image encoder [default: %(default)s]")
    add("--device", default="cpu", help="cpu or cuda[:N] [default: %(default)s]")
    add("--cache", type=Path, default=Path("~/.cache/prompt-serve/benchmarks").expanduser())
    add("--concurrency", type=int, default=32, help="requests in flight [default: %(default)s]")
    add("--seconds", type=float, default=seconds, help="seconds per turn [default: %(default)s]")
    add("--rounds", type=int, default=3, help="turns per side [default: %(default)s]")
    add("--size", type=int, nargs=2, default=(500, 375), help="size of the JPEG images in pixels")
    return parser


def prepared_bundle(options: argparse.Namespace) -> Path:
    if options.bundle is not None:
        return Path(options.bundle)
    path: Path = options.cache / f"{options.model.replace('/', '-')}-{options.precision}"
    if not (path / MANIFEST).is_file():
        command = ["export", options.model, "-o", str(path), "--precision", options.precision]
        subprocess.run([sys.executable, "-m", "prompt_serve", *command], check=True)
    return path


def write_images(folder: Path, size: tuple[int, int]) -> Path:
    """Write JPEG files with about the detail of photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(N_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        photo = np.clip(photo + rng.normal(0, 8, photo.shape), 0, 255)
        file = io.BytesIO()
        Image.fromarray(photo.astype(np.uint8)).save(file, "JPEG", quality=90)
        (folder / f"{n:03}.jpg").write_bytes(file.getvalue())
    return folder


def add_tasks(served: Served, tasks: int, classes: int, key: str | None = None) -> None:
    headers = {} if key is None else {"X-Api-Key": key}
    for n in range(tasks):
        names = [f"thing {n} {c}" for c in range(classes)]
        body = {"name": f"bench-{n}", "class_names": names}
        httpx.post(
            f"{served.url}/v1/tasks", json=body, headers=headers, timeout=600
        ).raise_for_status()


def raw_session(bundle: Bundle, device: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cores()
    provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    return ort.InferenceSession(str(bundle.image_encoder), options, providers=[provider])


def pixels_of(bundle: Bundle, files: Sequence[bytes]) -> PixelArray:
    return np.stack([pixels_from_bytes(data, bundle.manifest.preprocessing) for data in files])


def throughput(
    options: argparse.Namespace,
    served: Served,
    session: ort.InferenceSession,
    images: Path,
    pixels: PixelArray,
) -> None:
    run_client(served, images, options, seconds=3)  # warm-up
    raw, loads = [], []
    for _ in range(options.rounds):
        raw.append(raw_images_per_s(session, pixels, options.seconds))
        loads.append(run_client(served, images, options))
    latencies = np.concatenate([load.latencies_ms for load in loads])
    statuses = sum((load.statuses for load in loads), Counter())
    failed = sum(count for status, count in statuses.items() if status != "200")
    http = [load.images_per_s for load in loads]
    print(f"\nconcurrency {options.concurrency}, {options.tasks} task(s), batches of {len(pixels)}")
    left = [load.left_to_service for load in loads]
    print(f"{'round':>8} {'raw img/s':>10} {'http img/s':>11} {'ratio':>7} {'client apart':>13}")
    for n, (r, h, own) in enumerate(zip(raw, http, left, strict=True)):
        print(f"{n + 1:>8} {r:>10.2f} {h:>11.2f} {h / r:>7.3f} {h / r / own:>13.3f}")
    ratio = np.mean(http) / np.mean(raw)
    print(f"{'all':>8} {np.mean(raw):>10.2f} {np.mean(http):>11.2f} {ratio:>7.3f} "
          f"{ratio / np.mean(left):>13.3f}")  # fmt: skip
    p50, p99 = np.percentile(latencies, [50, 99])
    print(f"requests {len(latencies)}, failed {failed}, p50 {p50:.0f} ms, p99 {p99:.0f} ms")


def latency(
    options: argparse.Namespace,
    served: Served,
    session: ort.InferenceSession,
    images: Path,
    bundle: Bundle,
    files: Sequence[bytes],
) -> None:
    raw_ms: list[float] = []
    http_ms: list[float] = []
    for _ in range(options.rounds):
        raw_ms += raw_latencies_ms(session, bundle, files, options.seconds / 2)
        load = run_client(served, images, options, concurrency=1, seconds=options.seconds / 2)
        http_ms += load.latencies_ms
    raw, http = np.median(raw_ms), np.median(http_ms)
    print("\nconcurrency 1 (medians)")
    print(f"decode + batch of one {raw:.1f} ms, http {http:.1f} ms, added {http - raw:.1f} ms")


def raw_images_per_s(session: ort.InferenceSession, pixels: PixelArray, seconds: float) -> float:
    session.run(None, {"pixels": pixels})
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        session.run(None, {"pixels": pixels})
        count += len(pixels)
    return count / (time.perf_counter() - started)


def raw_latencies_ms(
    session: ort.InferenceSession, bundle: Bundle, files: Sequence[bytes], seconds: float
) -> list[float]:
    found: list[float] = []
    give_up = time.perf_counter() + seconds
    while (started := time.perf_counter()) < give_up:
        pixels = pixels_of(bundle, [files[len(found) % len(files)]])
        session.run(None, {"pixels": pixels})
        found.append(1000 * (time.perf_counter() - started))
    return found


def run_client(
    served: Served,
    images: Path,
    options: argparse.Namespace,
    *,
    concurrency: int | None = None,
    seconds: float | None = None,
) -> Load:
    arguments = {
        "--port": served.url.rpartition(":")[2],
        "--images": images,
        "--tasks": options.tasks,
        "--concurrency": concurrency or options.concurrency,
        "--seconds": seconds or options.seconds,
    }
    flat = [str(part) for pair in arguments.items() for part in pair]
    command = [sys.executable, str(Path(__file__).with_name("http_client.py")), *flat]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    return Load(
        seconds=answer["seconds"],
        statuses=Counter(answer["statuses"]),
        latencies_ms=[1000 * s for s in answer["latencies_s"]],
        cpu_s=answer["cpu_s"],
    )


if __name__ == "__main__":
    main()
