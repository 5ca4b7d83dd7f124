"""Choose what runs the image encoder: by name, or the fastest by a measurement of two seconds.

Engines are compared in the bundle's own precision only, and only those whose features agree with
ONNX Runtime's, which the export compared with PyTorch. Another engine has to be faster by a tenth,
so that noise alone does not change the engine from one start to the next.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prompt_serve.bundle import Bundle
from prompt_serve.engines import openvino_images
from prompt_serve.engines.batch_sizes import batch_buckets
from prompt_serve.engines.interface import ImageEngine
from prompt_serve.engines.onnx_cuda import cuda_images
from prompt_serve.engines.onnx_images import OnnxImages
from prompt_serve.engines.onnx_tensorrt import tensorrt
from prompt_serve.engines.openvino_images import OpenVinoImages
from prompt_serve.errors import PromptServeError, ProviderUnavailable
from prompt_serve.types import EngineName, FloatArray, PixelArray, Precision

TENSORRT_CACHE = Path("~/.cache/prompt-serve/tensorrt").expanduser()
MEASUREMENT_S = 2.0
FASTER = 1.1  # by which another engine than ONNX Runtime must be faster
_PROBE_IMAGES = 8
# Largest difference of one feature between two engines. Both may differ from PyTorch by the limits
# of ``export.parity``; float32 engines differ by 1e-6.
AGREEMENT: Mapping[Precision, float] = {"fp32": 1e-4, "int8": 6e-2}
_ROUNDS = 3  # at least, whatever they take


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Engine that runs the image encoder, and why.

    Args:
        engine: the opened engine.
        reason: a sentence for operators.
        images_per_s: what was measured, by engine; empty if nothing was.
    """

    engine: ImageEngine
    reason: str
    images_per_s: Mapping[str, float] = field(default_factory=dict)


def choose_engine(
    bundle: Bundle,
    name: EngineName | None,
    *,
    cuda_device: int | None,
    threads: int,
    max_batch: int,
    cache: Path = TENSORRT_CACHE,
) -> Chosen:
    """Open the image encoder of a bundle.

    Args:
        bundle: an exported backbone.
        name: engine; None chooses the fastest.
        cuda_device: index of a CUDA device; None runs on the CPU.
        threads: number of threads of the CPU kernels.
        max_batch: images per batch of the measurement, and largest batch on CUDA.
        cache: folder for what TensorRT compiles.

    Raises:
        ProviderUnavailable: the engine cannot run this bundle here.
        DependencyMissing: it is not installed.
        BundleInvalid: the graph cannot be loaded.
    """
    check_engine(bundle, name, cuda_device=cuda_device)
    if cuda_device is not None:
        return _on_cuda(bundle, name or "onnxruntime", cuda_device, threads, max_batch, cache)
    if name == "openvino":
        return Chosen(engine=OpenVinoImages(bundle, threads=threads), reason="It was requested.")
    if name == "onnxruntime":
        return Chosen(engine=OnnxImages(bundle, threads=threads), reason="It was requested.")
    return _fastest(bundle, threads, max_batch)


def check_engine(bundle: Bundle, name: EngineName | None, *, cuda_device: int | None) -> None:
    """Check, without opening it, that an engine fits the bundle and the device.

    Raises:
        ProviderUnavailable: it does not.
        DependencyMissing: it is not installed.
    """
    precision, on_cpu = bundle.manifest.precision, cuda_device is None
    if name == "tensorrt" and on_cpu:
        raise _mismatch(
            "TensorRT runs on CUDA devices only: set PROMPT_SERVE_DEVICE=cuda, or another "
            "PROMPT_SERVE_ENGINE."
        )
    if name == "openvino" and not on_cpu:
        raise _mismatch(
            "OpenVINO runs on CPUs only: set PROMPT_SERVE_DEVICE=cpu, or PROMPT_SERVE_ENGINE=auto."
        )
    if precision == "bf16" and (not on_cpu or name == "onnxruntime"):
        raise _mismatch(
            f"{bundle.path} is a bf16 bundle, which OpenVINO alone computes, on CPUs: set "
            f"PROMPT_SERVE_ENGINE=auto and PROMPT_SERVE_DEVICE=cpu, or export with --precision "
            f"fp32 (fp16 for CUDA)."
        )
    if name == "openvino" or precision == "bf16":
        openvino_images.check(bundle)


def _mismatch(message: str) -> ProviderUnavailable:
    return ProviderUnavailable(message, reason="the engine does not fit")


def _on_cuda(
    bundle: Bundle, name: EngineName, device: int, threads: int, max_batch: int, cache: Path
) -> Chosen:
    if name == "tensorrt":
        engine = OnnxImages(
            bundle,
            tensorrt(device, bundle.manifest.precision, cache),
            name=name,
            threads=threads,
            batch_sizes=batch_buckets(max_batch),
        )
        return Chosen(engine=engine, reason="It was requested.")
    engine = cuda_images(bundle, device, threads=threads, max_batch=max_batch)
    return Chosen(engine=engine, reason="It is the engine for CUDA.")


def _fastest(bundle: Bundle, threads: int, max_batch: int) -> Chosen:
    if bundle.manifest.precision == "bf16":
        reason = "It is the engine for bf16."
        return Chosen(engine=OpenVinoImages(bundle, threads=threads), reason=reason)
    onnx = OnnxImages(bundle, threads=threads)
    if not openvino_images.is_installed():
        return Chosen(engine=onnx, reason="No other engine is installed.")
    try:
        other = OpenVinoImages(bundle, threads=threads)
    except PromptServeError as error:
        return Chosen(engine=onnx, reason=f"openvino was ruled out: {error.message}")
    probe = _patterns(_PROBE_IMAGES, bundle.manifest.preprocessing.image_size)
    difference = largest_difference(onnx.encode(probe), other.encode(probe))
    limit = AGREEMENT[bundle.manifest.precision]
    if not difference <= limit:  # also of NaN
        return Chosen(
            engine=onnx,
            reason=f"openvino was ruled out: features differ by {difference:.1e}, allowed "
            f"{limit:.0e}.",
        )
    rates = measure([onnx, other], _patterns(max_batch, probe.shape[1]))
    fastest = other if rates[other.name] >= FASTER * rates[onnx.name] else onnx
    shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
    reason = (
        f"Measured images per second in {bundle.manifest.precision}, batches of {max_batch}: "
        f"{shown}. Another engine than onnxruntime must be faster by {FASTER - 1:.0%}; features "
        f"differ by {difference:.1e} at most."
    )
    return Chosen(engine=fastest, reason=reason, images_per_s=rates)


def largest_difference(expected: FloatArray, actual: FloatArray) -> float:
    """Return the largest difference of one feature; NaN if there is one."""
    return float(np.abs(expected - actual).max())


def measure(
    engines: Sequence[ImageEngine], pixels: PixelArray, seconds: float = MEASUREMENT_S
) -> dict[str, float]:
    """Return images per second by engine: in turns, so that a busy machine slows all of them.

    Args:
        engines: opened engines.
        pixels: (B, S, S, 3) batch.
        seconds: duration of the measurement, unless ``_ROUNDS`` rounds take longer.
    """
    taken: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for engine in engines:
        engine.encode(pixels)  # allocates memory
    begin = time.monotonic()
    while time.monotonic() - begin < seconds or len(taken[engines[0].name]) < _ROUNDS:
        for engine in engines:
            started = time.perf_counter()
            engine.encode(pixels)
            taken[engine.name].append(time.perf_counter() - started)
    return {name: round(len(pixels) / statistics.median(of), 2) for name, of in taken.items()}


def _patterns(count: int, side: int) -> PixelArray:
    """Generate pixels (count, S, S, 3): noise in the first half, waves of all lengths in the rest.

    Waves are nearer to photographs, whose activations are larger than those of noise.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(count, side, side, 3), dtype=np.uint8)
    y, x = np.indices((side, side))[..., np.newaxis] / side
    for index in range(count // 2, count):
        u, v, phase = rng.uniform(0, 12, size=(3, 3))
        pixels[index] = 127.5 + 127.4 * np.sin(2 * np.pi * (u * x + v * y) + phase)
    return pixels
