"""Images per second of the image encoder on a CUDA device, through the service's own engine.

    prompt-serve export ViT-B-16/random --precision fp16 -o bundle
    python benchmarks/gpu.py bundle

Fails if ONNX Runtime does not run on CUDA; ``--device cpu`` is a dry run without a GPU. Prints
images/s by batch size, from pixels in host memory to features in host memory, and the largest
difference from the features of the same graph on the CPU.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from prompt_serve.bundle import open_bundle
from prompt_serve.service.inference.engine import Engine, batch_buckets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--max-batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per batch size")
    options = parser.parse_args()

    bundle = open_bundle(options.bundle)
    engine = Engine(
        bundle,
        cuda_device=0 if options.device == "cuda" else None,
        threads=4,
        max_batch=options.max_batch,
    )
    side = bundle.manifest.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(
        0, 256, (options.max_batch, side, side, 3), dtype=np.uint8
    )
    print(f"{bundle.manifest.backbone.id} {bundle.manifest.precision} on {engine.provider}")
    engine.warm_up()
    for batch in batch_buckets(options.max_batch):
        rate, p50_ms = images_per_s(engine, pixels[:batch], options.seconds)
        print(f"batch {batch:4d}: {rate:9,.0f} images/s, {p50_ms:8.2f} ms per batch (median)")
    if options.device == "cuda":
        on_cpu = Engine(bundle, cuda_device=None, threads=4, max_batch=8)
        difference = np.abs(engine.encode_images(pixels[:8]) - on_cpu.encode_images(pixels[:8]))
        print(f"largest difference from the same graph on the CPU: {difference.max():.1e}")


def images_per_s(engine: Engine, pixels: np.ndarray, seconds: float) -> tuple[float, float]:
    """Return the overall images/s and the median milliseconds per batch."""
    times = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        engine.encode_images(pixels)
        times.append(time.perf_counter() - before)
    return len(pixels) * len(times) / sum(times), statistics.median(times) * 1e3


if __name__ == "__main__":
    main()
