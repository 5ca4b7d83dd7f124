"""The ONNX Runtime sessions of one bundle on one device; a device that was asked for is the device
that runs, or nothing does."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from prompt_serve.bundle import Bundle
from prompt_serve.errors import BundleInvalid, ProviderUnavailable, ServiceError
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.prompts.text_inputs import text_inputs
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.service.inference.ort_placement import RECORD, nodes_on_other_providers
from prompt_serve.service.tasks.feature_queue import at_low_priority
from prompt_serve.types import FloatArray, PixelArray

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_log = logging.getLogger(__name__)


class Engine:
    """Image and text encoder of a bundle. Thread-safe, as ONNX Runtime's sessions are.

    Args:
        bundle: an exported backbone.
        cuda_device: index of a CUDA device; None runs on the CPU.
        threads: of the CPU kernels.
        max_batch: the most images that are encoded in one call.

    Raises:
        ProviderUnavailable: CUDA was asked for and does not run. There is no quiet way back to
            the CPU: ONNX Runtime would take it.
        BundleInvalid: the graphs cannot be loaded.
    """

    def __init__(
        self, bundle: Bundle, *, cuda_device: int | None, threads: int, max_batch: int
    ) -> None:
        self.bundle = bundle
        self._image_size = bundle.manifest.preprocessing.image_size
        # On a CPU a padded image costs as much as a real one. On CUDA every new batch size plans
        # its memory anew, so a few sizes are warmed up and smaller batches padded to them.
        self._buckets = None if cuda_device is None else batch_buckets(max_batch)
        self._warm_up_sizes = self._buckets or sorted({1, max_batch})
        self._image_session = _open(str(bundle.image_encoder), cuda_device, threads)
        # Its threads stand back behind those of the image encoder: an upload can wait.
        self._text_session = at_low_priority(
            lambda: _open(str(bundle.text_encoder), cuda_device, threads)
        )
        self.provider = str(self._image_session.get_providers()[0])
        self.text_provider = str(self._text_session.get_providers()[0])
        self.runtime = f"onnxruntime {ort.__version__}"
        self.slowest_batch_s = 0.0  # of the warm-up, once it was warm
        self.last_text_success = float("-inf")  # of time.monotonic()
        self._a_name = _a_name(bundle)

    def encode_images(self, pixels: PixelArray) -> FloatArray:
        """(B, S, S, 3) uint8 -> (B, E) image features of unit length."""
        n = len(pixels)
        if self._buckets is not None:
            pixels = _pad(pixels, self._buckets)
        (features,) = self._image_session.run(["image_features"], {"pixels": pixels})
        return np.asarray(features[:n], dtype=np.float32)

    def encode_text(self, sequences: Sequences) -> FloatArray:
        """Assembled sequences of C classes -> (C, E) features of unit length.

        Raises:
            PromptFileInvalid: they have vectors for another number of blocks.
        """
        inputs = text_inputs(sequences, self.bundle.manifest.text_layers)
        (features,) = self._text_session.run(["class_features"], inputs)
        self.last_text_success = time.monotonic()
        return np.asarray(features, dtype=np.float32)

    def encode_a_name(self) -> None:
        """Run the text graph on one short class name, to see that it works.

        Raises:
            ServiceError: the features are not numbers.
        """
        features = class_features(self._a_name, self.bundle.text_side, self.encode_text)
        if not np.isfinite(features).all():
            raise ServiceError("Class features came out as NaN or infinite.")

    def warm_up(self) -> None:
        """Run every batch size and the text graph once, so that no request pays for first runs."""
        side = self._image_size
        for size in self._warm_up_sizes:
            self.encode_images(np.zeros((size, side, side, 3), dtype=np.uint8))
        largest = np.zeros((self._warm_up_sizes[-1], side, side, 3), dtype=np.uint8)
        started = time.monotonic()
        self.encode_images(largest)
        self.slowest_batch_s = time.monotonic() - started
        self.encode_a_name()


def _a_name(bundle: Bundle) -> Prompt:
    return Prompt(
        name="probe",
        method="zero-shot",
        class_names=("cat",),
        templates=(DEFAULT_TEMPLATE,),
        backbone=bundle.manifest.backbone,
        probe=np.zeros(1, dtype=np.float16),
    )


def batch_buckets(max_batch: int) -> list[int]:
    """1, 2, 4, ... up to ``max_batch``, which is always the last."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch:
        sizes.append(sizes[-1] * 2)
    return sorted({*sizes, max_batch})


def _pad(pixels: PixelArray, buckets: Sequence[int]) -> PixelArray:
    size = next((bucket for bucket in buckets if bucket >= len(pixels)), len(pixels))
    if size == len(pixels):
        return pixels
    padded = np.zeros((size, *pixels.shape[1:]), dtype=np.uint8)
    padded[: len(pixels)] = pixels
    return padded


def _open(path: str, cuda_device: int | None, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Between two operators the threads spin, which is fast; between two batches they must not, or
    # they would take the cores from the threads that decode the next images.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Work in small blocks: a thread that lost its core for a moment to a decoding one does not
    # keep all others waiting with a large block of its own.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    options.add_session_config_entry(RECORD, "1")
    options.log_severity_level = 3
    wanted = _CPU if cuda_device is None else _CUDA
    providers = [(_CPU, {})] if cuda_device is None else _cuda_providers(cuda_device)
    try:
        session = ort.InferenceSession(path, sess_options=options, providers=providers)
    # ONNX Runtime raises its own exceptions, which share no base but Exception.
    except Exception as error:
        if cuda_device is not None:
            raise _no_cuda(cuda_device, str(error)) from error
        raise BundleInvalid(f"{path} cannot be loaded: {error}", path=path) from error
    # Neither get_available_providers() nor disable_fallback() prevents a quiet fall-back.
    active = session.get_providers()[0]
    if active != wanted:
        raise _no_cuda(cuda_device, f"the session came up on {active}")
    if left := nodes_on_other_providers(session, wanted):
        nodes = ", ".join(f"{count} {op}" for op, count in left.most_common())
        raise _no_cuda(
            cuda_device,
            f"it leaves products of matrices in {Path(path).name} to another provider ({nodes}); "
            f"an int8 bundle is for CPUs, export with --precision fp16",
        )
    return session


def _cuda_providers(device: int) -> list[tuple[str, dict[str, Any]]]:
    """CUDA; TF32 would round the text encoder's float32, which the probe checks."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries of the nvidia-* wheels
    options = {
        "device_id": device,
        "use_tf32": 0,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return [(_CUDA, options)]


def _no_cuda(device: int | None, reason: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        f"CUDA device {device} was asked for, but ONNX Runtime {ort.__version__} cannot run on it: "
        f"{reason}. Providers built into this onnxruntime: "
        f"{', '.join(ort.get_available_providers())}. Check the driver (nvidia-smi) and the CUDA "
        f"and cuDNN libraries, or set PROMPT_SERVE_DEVICE=cpu.",
        reason=reason,
    )
