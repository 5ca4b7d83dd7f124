"""Speed of the image encoder on a CPU: every engine and precision, and PyTorch, in turns.

    python -m benchmarks.encoder_speed --backbone ViT-B-16/random --batch 1 8 32 --rounds 5

Encoders alternate within one run, so that a busy machine slows all of them equally. Columns:

    images/s          median of the rounds, by the clock
    per core-second   images per second of CPU time, the best round; other processes matter less
    GEMM share        that, as a share of one large matrix product of the same type on one core
    cosine, top-1     smallest cosine to open_clip in float32, and the share of 100 drawings put
                      into the same of 20 classes (``prompt_serve.export.parity.disagreement``)

The bundles are exported once, to --cache. torch.compile needs a C++ compiler; --no-compile leaves
it out. Operations per image are those of the tower's linear layers, without the attention's own
products; ours computes the last block for the pooled row only, some 5 % less for a ViT-B/16.
"""

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.http_throughput import prepared_bundle
from prompt_serve.bundle import Bundle, open_bundle
from prompt_serve.engines.interface import ImageEngine
from prompt_serve.engines.onnx_images import OnnxImages
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.engines.openvino_images import OpenVinoImages
from prompt_serve.export.parity import disagreement
from prompt_serve.export.quiet import quiet_libraries
from prompt_serve.export.samples import random_pixels
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.types import FloatArray, PixelArray, Precision

Encode = Callable[[PixelArray], FloatArray]
ROWS, WIDTH = 1576, 768  # of the matrix product: eight images of a ViT-B/16


@dataclass(frozen=True)
class Encoder:
    """An encoder to measure: its name, the type of its products, and the call."""

    name: str
    precision: Precision
    encode: Encode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backbone", default="ViT-B-16/random", help="as for prompt-serve export")
    add("--batch", type=int, nargs="+", default=[8], help="images per batch")
    add("--rounds", type=int, default=5, help="timed batches per encoder")
    add("--threads", type=int, default=available_cores(), help="threads of every encoder")
    add("--cache", type=Path, default=Path("~/.cache/prompt-serve/benchmarks").expanduser())
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--only", default="", help="encoders whose name contains this")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with quiet_libraries():
        backbone = load_backbone(options.backbone)
    pixels = random_pixels(backbone.preprocessing, count=max(options.batch))
    operations = operations_per_image(backbone, pixels)
    peaks = {precision: product_peak(precision) for precision in ("fp32", "bf16", "int8")}
    print(f"{options.backbone}, {options.threads} threads, {operations / 1e9:.1f} GOP per image")
    shown = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items())
    print(f"matrix product {ROWS} x {WIDTH} x {4 * WIDTH}, GOP per core-second: {shown}")
    encoders = [one for one in all_encoders(backbone, options) if options.only in one.name]
    for batch in options.batch:
        print_rates(encoders, pixels[:batch], options.rounds, operations, peaks)
    print_agreement(backbone, encoders)


def all_encoders(backbone: Backbone, options: argparse.Namespace) -> list[Encoder]:
    eager = Encoder("open_clip eager fp32", "fp32", backbone.encode_pixels)
    half = torch_bf16(backbone, compiled=False)
    found = [eager, Encoder("open_clip eager bf16", "bf16", half)]
    if not options.no_compile:
        compiled = torch_bf16(backbone, compiled=True)
        found.append(Encoder("open_clip compile bf16", "bf16", compiled))
    fp32, int8 = (bundle_of(options, precision) for precision in ("fp32", "int8"))
    engines: list[ImageEngine] = [OnnxImages(one, threads=options.threads) for one in (fp32, int8)]
    if find_spec("openvino") is not None:
        bf16 = replace(fp32, manifest=fp32.manifest.model_copy(update={"precision": "bf16"}))
        engines += [OpenVinoImages(one, threads=options.threads) for one in (fp32, bf16, int8)]
    gc.collect()
    return found + [Encoder(f"{e.name} {e.precision}", e.precision, e.encode) for e in engines]


def bundle_of(options: argparse.Namespace, precision: Precision) -> Bundle:
    asked = {"model": options.backbone, "precision": precision, "cache": options.cache}
    return open_bundle(prepared_bundle(argparse.Namespace(bundle=None, **asked)), verify=False)


def torch_bf16(backbone: Backbone, *, compiled: bool) -> Encode:
    tower = copy.deepcopy(backbone.clip.visual).to(torch.bfloat16)
    run = torch.compile(tower) if compiled else tower

    def encode(pixels: PixelArray) -> FloatArray:
        with torch.inference_mode():
            features = run(backbone.normalize(torch.from_numpy(pixels)).to(torch.bfloat16))
            return functional.normalize(features.float(), dim=-1).numpy()

    return encode


def operations_per_image(backbone: Backbone, pixels: PixelArray) -> float:
    torch.backends.mha.set_fastpath_enabled(False)  # it hides its products from the counter
    with FlopCounterMode(display=False) as counter:
        backbone.encode_pixels(pixels[:1])
    torch.backends.mha.set_fastpath_enabled(True)
    return float(counter.get_total_flops())


def product_peak(precision: str) -> float:
    """Return operations per core-second of one large product, by the library that has it."""
    shapes = (ROWS, WIDTH), (WIDTH, 4 * WIDTH)
    if precision == "int8":
        a, b = (torch.randint(-64, 64, shape, dtype=torch.int8) for shape in shapes)
        multiply = partial(torch._int_mm, a, b)
    else:
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        a, b = (torch.randn(shape).to(dtype) for shape in shapes)
        multiply = partial(torch.mm, a, b)
    return 2 * ROWS * WIDTH * 4 * WIDTH / min(cpu_seconds(multiply)[1] for _ in range(30))


def cpu_seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds by the clock, and of CPU time in all threads."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def print_rates(
    encoders: list[Encoder],
    pixels: PixelArray,
    rounds: int,
    operations: float,
    peaks: dict[str, float],
) -> None:
    taken: dict[str, list[tuple[float, float]]] = {one.name: [] for one in encoders}
    for _ in range(rounds + 1):
        for one in encoders:
            taken[one.name].append(cpu_seconds(partial(one.encode, pixels)))
    print(
        f"\n{f'batch {len(pixels)}':<24}{'images/s':>10}{'per core-second':>18}{'GEMM share':>12}"
    )
    for one in encoders:
        clock, cpu = zip(*taken[one.name][1:], strict=True)  # the first allocates memory
        rate = len(pixels) / min(cpu)
        share = rate * operations / peaks[one.precision]
        print(
            f"{one.name:<24}{len(pixels) / statistics.median(clock):>10.2f}{rate:>18.2f}"
            f"{share:>12.2f}"
        )


def print_agreement(backbone: Backbone, encoders: list[Encoder]) -> None:
    pixels = random_pixels(backbone.preprocessing, count=8)
    expected = backbone.encode_pixels(pixels)
    print(f"\n{'agreement':<24}{'cosine':>10}{'top-1':>8}")
    for one in encoders:
        cosine = float(np.min((one.encode(pixels) * expected).sum(axis=1)))
        print(f"{one.name:<24}{cosine:>10.5f}{1 - disagreement(backbone, one.encode).value:>8.0%}")


if __name__ == "__main__":
    main()
