"""Speed of the image encoder on the CPU: open_clip in PyTorch, exported fp32 and int8 graphs.

    python benchmarks/encoder_speed.py --backbone ViT-B-16/random --batch 16 --rounds 7

The three alternate within one run, so that a busy machine slows all of them equally. Figures are
medians over the rounds. Agreement is the share of 100 drawings to which int8 and fp32 assign the
same of 20 classes (``prompt_serve.export.parity.disagreement``).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import torch

from prompt_serve.export.graphs import image_graph
from prompt_serve.export.parity import disagreement, run
from prompt_serve.export.quantize import quantize
from prompt_serve.export.quiet import quiet_libraries
from prompt_serve.export.samples import random_pixels
from prompt_serve.training.clip.backbone import load_backbone

EAGER = "open_clip eager fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="ViT-B-32/random", help="as for prompt-serve export")
    parser.add_argument("--batch", type=int, default=8, help="images per batch")
    parser.add_argument("--rounds", type=int, default=5, help="timed batches per encoder")
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of PyTorch and ONNX Runtime"
    )
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with quiet_libraries():
        backbone = load_backbone(options.backbone)
    pixels = random_pixels(backbone.preprocessing, count=options.batch)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = sessions(image_graph(backbone), Path(folder), options.threads)
    encoders: dict[str, Callable[[], object]] = {
        EAGER: lambda: backbone.encode_images(torch.from_numpy(pixels)),
        "exported fp32": lambda: run(fp32, pixels),
        "exported int8": lambda: run(int8, pixels),
    }
    seconds = take_turns(encoders, options.rounds)

    print(f"{options.backbone}, batch {options.batch}, {options.threads} threads")
    print(f"{'encoder':<24}{'images/s':>10}{'ratio':>8}")
    for name, taken in seconds.items():
        print(f"{name:<24}{options.batch / taken:>10.2f}{seconds[EAGER] / taken:>8.2f}")
    print(f"top-1 agreement of int8 with fp32: {1 - disagreement(backbone, int8).value:.1%}")


def sessions(
    model: onnx.ModelProto, folder: Path, threads: int
) -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]:
    onnx.save(model, folder / "fp32.onnx")
    quantize(model, folder / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    fp32, int8 = (
        onnxruntime.InferenceSession(
            str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
        )
        for name in ("fp32", "int8")
    )
    return fp32, int8


def take_turns(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call, interleaved, after an untimed round."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


if __name__ == "__main__":
    main()
