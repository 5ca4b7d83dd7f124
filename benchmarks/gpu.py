"""Images per second of the image encoder on a CUDA device, through the service's own engine.

    prompt-serve export ViT-B-16/random --precision fp16 -o bundle
    python -m benchmarks.gpu bundle

Fails if ONNX Runtime does not run on CUDA; ``--device cpu`` is a dry run without a GPU. Prints
images/s by batch size, from pixels in host memory to features in host memory: without learned
vectors of the image tower, and with some for every image. Then the largest difference from the
features of the same graphs on the CPU, for a batch with every kind of image prompt as well.
``--peer`` adds what PyTorch reaches in fp16 and the device's peak (``benchmarks.gpu_peer``).
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.rates import images_per_s
from prompt_serve.bundle import open_bundle
from prompt_serve.engines.batch_sizes import batch_buckets
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.service.inference.engine import Engine
from prompt_serve.types import FloatArray

ROWS = 4  # per block
Vectors = PromptVectors[FloatArray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--max-batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per batch size")
    parser.add_argument("--peer", metavar="MODEL", help="open_clip model to compare: ViT-B-16")
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
    print(
        f"{bundle.manifest.backbone.id} {bundle.manifest.precision} on {engine.provider}, "
        f"{engine.runtime}"
    )
    engine.warm_up()
    kinds = _kinds(engine)
    for batch in batch_buckets(options.max_batch):
        works = {"plain": partial(engine.encode_images, pixels[:batch])}
        if kinds:
            works[f"{ROWS} rows per block"] = partial(
                engine.encode_images, pixels[:batch], [kinds[0]] * batch
            )
        for name, work in works.items():
            rate, p50_ms = images_per_s(work, batch, options.seconds)
            print(f"batch {batch:4d}, {name}: {rate:9,.0f} images/s, {p50_ms:8.2f} ms (median)")
    print_differences(engine, pixels, kinds)
    if options.peer is not None:
        from benchmarks.gpu_peer import print_peer  # needs PyTorch, the rest does not

        print_peer(options.peer, pixels, seconds=options.seconds)


def print_differences(engine: Engine, pixels: np.ndarray, kinds: list[ImageRows]) -> None:
    """Compare with the same graphs on the CPU: plain images, and one image of each kind."""
    on_cpu = Engine(engine.bundle, cuda_device=None, threads=4, max_batch=8)
    mixes: dict[str, list[ImageRows | None]] = {"plain images": []}
    if kinds:
        mixes["mixed image prompts"] = [None, *kinds, None]
    for name, rows in mixes.items():
        batch = pixels[: len(rows) or 8]
        difference = engine.encode_images(batch, rows) - on_cpu.encode_images(batch, rows)
        print(f"largest difference from the CPU, {name}: {np.abs(difference).max():.1e}")


def _kinds(engine: Engine) -> list[ImageRows]:
    """Rows in every block, rows that go on, keys and values; none if the tower takes no rows."""
    size = engine.bundle.manifest.image_tower
    if size is None:
        return []
    rng = np.random.default_rng(0)

    def vectors(count: int) -> FloatArray:
        return rng.standard_normal((count, size.width)).astype(np.float32)

    kinds: list[Vectors] = [
        PromptVectors(
            context=vectors(ROWS), deeper=tuple(vectors(ROWS) for _ in range(size.layers - 1))
        ),
        PromptVectors(context=vectors(3)),
        PromptVectors(context=vectors(2), deeper=(vectors(2),)),
        PromptVectors(keys_values=tuple(vectors(block % 3) for block in range(size.layers))),
    ]
    rows = [engine.lay_out(kind) for kind in kinds]
    return [own for own in rows if own is not None]


if __name__ == "__main__":
    main()
