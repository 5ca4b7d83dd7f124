"""TensorRT through ONNX Runtime: compiles the image graph for one GPU when it is opened.

Where TensorRT does not know an operator (the fused attention), ONNX Runtime splits the graph and
runs that part on CUDA. A GPU compiles for minutes; ``cache`` keeps the result.
"""

from functools import partial
from pathlib import Path

import onnxruntime as ort

from prompt_serve.engines.onnx_cuda import cuda
from prompt_serve.engines.onnx_session import Provider
from prompt_serve.errors import ProviderUnavailable
from prompt_serve.types import Precision

TENSORRT = "TensorrtExecutionProvider"


def tensorrt(device: int, precision: Precision, cache: Path) -> Provider:
    """Return TensorRT with its options, and CUDA for what it leaves over.

    Args:
        device: index of a CUDA device.
        precision: of the bundle; fp16 is computed in fp16.
        cache: folder for compiled graphs.
    """
    options = {
        "device_id": device,
        "trt_fp16_enable": precision == "fp16",
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
    }
    return Provider(
        name=TENSORRT,
        options=options,
        rest=cuda(device),
        unavailable=partial(_unavailable, device),
    )


def _unavailable(device: int, reason: str) -> ProviderUnavailable:
    built_in = TENSORRT in ort.get_available_providers()
    way_out = (
        "Install the TensorRT libraries (pip install tensorrt-cu12)"
        if built_in
        else "Install an onnxruntime-gpu that contains it"
    )
    return ProviderUnavailable(
        f"TensorRT was requested on CUDA device {device}, but ONNX Runtime {ort.__version__} "
        f"cannot run it: {reason}. {way_out}, or set PROMPT_SERVE_ENGINE=onnxruntime.",
        reason=reason,
    )
