"""CUDA through ONNX Runtime: its options, batch sizes, and the error where it does not run."""

from functools import partial

import onnxruntime as ort

from prompt_serve.engines.onnx_session import Provider
from prompt_serve.errors import ProviderUnavailable

CUDA = "CUDAExecutionProvider"


def cuda(device: int) -> Provider:
    """Return CUDA with its options: no TF32, whose rounding of the text encoder fails the probe.

    Args:
        device: index of a CUDA device.
    """
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries of the nvidia-* wheels
    options = {
        "device_id": device,
        "use_tf32": 0,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return Provider(name=CUDA, options=options, unavailable=partial(_unavailable, device))


def _unavailable(device: int, reason: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        f"CUDA device {device} was requested, but ONNX Runtime {ort.__version__} cannot run on it: "
        f"{reason}. Providers built into this onnxruntime: "
        f"{', '.join(ort.get_available_providers())}. Check the driver (nvidia-smi) and the CUDA "
        f"and cuDNN libraries, or set PROMPT_SERVE_DEVICE=cpu.",
        reason=reason,
    )
