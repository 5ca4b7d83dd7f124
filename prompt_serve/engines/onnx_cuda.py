"""CUDA through ONNX Runtime: its options, captured graphs, and the error where it does not run."""

import logging
from functools import partial

import onnxruntime as ort

from prompt_serve.bundle import Bundle
from prompt_serve.engines.batch_sizes import batch_buckets
from prompt_serve.engines.onnx_images import OnnxImages
from prompt_serve.engines.onnx_session import Provider
from prompt_serve.errors import ProviderUnavailable

CUDA = "CUDAExecutionProvider"

_log = logging.getLogger(__name__)


def cuda_images(bundle: Bundle, device: int, *, threads: int, max_batch: int) -> OnnxImages:
    """Open the image encoder of a bundle on CUDA, with captured graphs where that is possible.

    On CUDA every new batch size needs a new memory plan, so a few sizes are warmed up and smaller
    batches are padded to them.

    Args:
        bundle: an exported backbone.
        device: index of a CUDA device.
        threads: number of threads of the kernels that are left to the CPU.
        max_batch: maximum number of images per call.

    Raises:
        ProviderUnavailable: CUDA does not run.
        BundleInvalid: the graph cannot be loaded.
    """
    sizes = batch_buckets(max_batch)
    open_images = partial(OnnxImages, bundle, cuda(device), threads=threads, batch_sizes=sizes)
    try:
        return open_images(captured=cuda(device, captured=True))
    # ONNX Runtime's own exceptions share no base class but Exception.
    except Exception as error:
        images = open_images()  # raises the same where CUDA itself does not run
        _log.warning(
            "The image encoder runs on CUDA without captured graphs, single images are slower: %s",
            error,
        )
        return images


def cuda(device: int, *, captured: bool = False) -> Provider:
    """Return CUDA with its options: no TF32, whose rounding of the text encoder fails the probe.

    Args:
        device: index of a CUDA device.
        captured: capture CUDA graphs, as ``CapturedBatches`` needs.
    """
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries of the nvidia-* wheels
    options = {
        "device_id": device,
        "use_tf32": 0,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": int(captured),
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
