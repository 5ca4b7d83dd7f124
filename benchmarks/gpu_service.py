"""Images per second that the service delivers over HTTP on one device, by number of processes.

    prompt-serve export ViT-B-16/random --precision fp16 -o bundle
    python -m benchmarks.gpu_service bundle --workers 1 2 4 8 16

Every process has its own session on the device. Requests carry one JPEG photograph, 32 of them, or
64 images as pixels, which the service need not decode. The clients are processes of their own on
the same machine; their CPU is counted apart.
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.front import add_task, measured, post
from benchmarks.http_throughput import write_images
from prompt_serve.bundle import open_bundle
from tests.service.process import Served, service

BOUNDARY = "images-of-the-benchmark"
PER_REQUEST = {"one JPEG": 1, "32 JPEGs": 32, "64 as pixels": 64}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bundle", type=Path)
    add("--device", default="cuda", help="cpu or cuda[:N] [default: %(default)s]")
    add("--workers", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of processes")
    add("--clients", type=int, default=4, help="client processes [default: %(default)s]")
    add("--concurrency", type=int, default=16, help="requests in flight of each client")
    add("--seconds", type=float, default=5, help="seconds per load [default: %(default)s]")
    add("--size", type=int, nargs=2, default=(500, 375), help="size of the JPEG images in pixels")
    options = parser.parse_args()
    side = open_bundle(options.bundle).manifest.preprocessing.image_size
    print(f"{'processes':>9} {'request':>13} {'images/s':>9} {'server ms':>9} {'client ms':>9} "
          f"{'p50 ms':>7} {'p99 ms':>7} failed")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_requests(folder, options.size, side)
        for workers in options.workers:
            settings = {"device": options.device, "workers": str(workers)}
            with service(folder / f"home-{workers}", options.bundle, **settings) as served:
                add_task(served)
                for kind, request in files.items():
                    print_load(options, served, workers, kind, request)


def write_requests(folder: Path, size: tuple[int, int], side: int) -> dict[str, Path]:
    """Write a complete HTTP request of each kind to a file."""
    photos = [path.read_bytes() for path in sorted(write_images(folder / "i", size).iterdir())]
    pixels = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), dtype=np.uint8)
    requests = {
        "one JPEG": post("image/jpeg", photos[0]),
        "32 JPEGs": post(f"multipart/form-data; boundary={BOUNDARY}", multipart(photos[:32])),
        "64 as pixels": post("application/x-npy", npy(pixels)),
    }
    files = {kind: folder / f"request-{n}" for n, kind in enumerate(requests)}
    for kind, request in requests.items():
        files[kind].write_bytes(request)
    return files


def multipart(photos: Sequence[bytes]) -> bytes:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
        f"Content-Type: image/jpeg\r\n\r\n"
    ).encode()
    parts = b"".join(head + photo + b"\r\n" for photo in photos)
    return parts + f"--{BOUNDARY}--\r\n".encode()


def npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return file.getvalue()


def print_load(
    options: argparse.Namespace, served: Served, workers: int, kind: str, request: Path
) -> None:
    """Send requests of one kind from all clients at once, after a warm-up that does not count."""
    concurrency = (
        options.concurrency if PER_REQUEST[kind] == 1 else max(2, options.concurrency // 8)
    )
    found = measured(served, request, concurrency, clients=options.clients, seconds=options.seconds)
    images = PER_REQUEST[kind]
    print(f"{workers:>9} {kind:>13} {images * found.requests_per_s:>9,.0f} "
          f"{found.server_ms / images:>9.3f} {found.client_ms / images:>9.3f} "
          f"{found.p50_ms:>7.1f} {found.p99_ms:>7.1f} {found.failed}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
