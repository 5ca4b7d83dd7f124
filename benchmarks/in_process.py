"""Images per second of ``prompt_serve.load``, of an exported task file, and of the encoder alone.

    python -m benchmarks.in_process /work/photos --model ViT-B-16/random --precision int8

All three in turns in one process, in batches of 8, without a service. The encoder alone gets pixels
that were decoded before; the two others read and decode the files.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

import prompt_serve
from benchmarks.http_throughput import load_options, prepared_bundle
from prompt_serve.bundle import Bundle, open_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.export.task.build import export_task
from prompt_serve.export.task.encoder import TaskPrecision
from prompt_serve.image_folders import Ignored, find_images
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.types import PixelArray
from tests.offline.prompts import zero_shot_of

BATCH = 8
CPU = "CPUExecutionProvider"


def main() -> None:
    parser = load_options(__doc__, seconds=0)  # turns last as long as all images take
    parser.add_argument("photos", type=Path, help="folder of images")
    parser.add_argument("--images", type=int, default=64, help="images [default: %(default)s]")
    options = parser.parse_args()
    bundle = open_bundle(prepared_bundle(options))
    photos = find_images(options.photos, Ignored())[: options.images]
    with tempfile.TemporaryDirectory() as folder:
        kinds = readers(bundle, photos, Path(folder))
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind, read_all in kinds.items():
                began = time.perf_counter()
                read_all()
                rates[kind].append(len(photos) / (time.perf_counter() - began))
    for kind, found in rates.items():
        print(f"{kind:>20}: {np.median(found):.1f} images/s "
              f"({', '.join(f'{rate:.1f}' for rate in found)})")  # fmt: skip


def readers(bundle: Bundle, photos: Sequence[Path], folder: Path) -> dict[str, Callable[[], None]]:
    """Return what reads all photographs, by name."""
    of = Encoders.open(bundle, cuda_device=None, threads=available_cores())
    prompt = zero_shot_of(of, folder / "task.safetensors", *(f"thing {n}" for n in range(10)))
    model = prompt_serve.load(prompt, bundle=bundle.path)
    precision: TaskPrecision = "int8" if bundle.manifest.precision == "int8" else "fp32"
    export_task(prompt.read_bytes(), bundle, folder / "task.onnx", precision=precision)
    exported = ort.InferenceSession(str(folder / "task.onnx"), providers=[CPU])
    encoder = ort.InferenceSession(str(bundle.image_encoder), providers=[CPU])
    decoded = np.stack([decode(path, bundle) for path in photos])
    batches = [photos[start : start + BATCH] for start in range(0, len(photos), BATCH)]

    def run_encoder() -> None:
        for start in range(0, len(photos), BATCH):
            encoder.run(None, {"pixels": decoded[start : start + BATCH]})

    def run_exported() -> None:
        for batch in batches:
            exported.run(None, {"pixels": np.stack([decode(path, bundle) for path in batch])})

    def run_model() -> None:
        model.predict(photos)

    return {"encoder alone": run_encoder, "exported task": run_exported, "predict": run_model}


def decode(path: Path, bundle: Bundle) -> PixelArray:
    return pixels_from_bytes(path.read_bytes(), bundle.manifest.preprocessing)


if __name__ == "__main__":
    main()
