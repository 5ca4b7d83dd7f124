"""ONNX Runtime sessions of one bundle on one device.

They run on the requested device or not at all: there is no silent fallback.
"""

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
from prompt_serve.service.inference.ort_placement import RECORD_ASSIGNMENT, nodes_on_other_providers
from prompt_serve.service.tasks.feature_queue import at_low_priority
from prompt_serve.types import FloatArray, PixelArray

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_log = logging.getLogger(__name__)


class Engine:
    """Image and text encoder of a bundle. Thread-safe, as ONNX Runtime's sessions are.

    Args:
        bundle: an exported backbone.
        cuda_device: index of a CUDA device; None runs on the CPU.
        threads: number of threads of the CPU kernels.
        max_batch: maximum number of images per call.

    Raises:
        ProviderUnavailable: CUDA was requested and does not run. ONNX Runtime would fall back to
            the CPU silently.
        BundleInvalid: the graphs cannot be loaded.
    """

    def __init__(
        self, bundle: Bundle, *, cuda_device: int | None, threads: int, max_batch: int
    ) -> None:
        self.bundle = bundle
        self._image_size = bundle.manifest.preprocessing.image_size
        # On a CPU a padded image costs as much as a real one. On CUDA every new batch size needs a
        # new memory plan, so a few sizes are warmed up and smaller batches are padded to them.
        self._buckets = None if cuda_device is None else batch_buckets(max_batch)
        self._warm_up_sizes = self._buckets or sorted({1, max_batch})
        self._image_session = _open(str(bundle.image_encoder), cuda_device, threads)
        # Its threads yield to those of the image encoder: an upload can wait.
        self._text_session = at_low_priority(
            lambda: _open(str(bundle.text_encoder), cuda_device, threads)
        )
        self.provider = str(self._image_session.get_providers()[0])
        self.text_provider = str(self._text_session.get_providers()[0])
        self.runtime = f"onnxruntime {ort.__version__}"
        self.slowest_batch_s = 0.0  # duration of the largest batch after warm-up
        self.last_text_success = float("-inf")  # on time.monotonic()
        self._probe_prompt = _probe_prompt(bundle)

    def encode_images(self, pixels: PixelArray) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features of unit length."""
        n = len(pixels)
        if self._buckets is not None:
            pixels = _pad(pixels, self._buckets)
        (features,) = self._image_session.run(["image_features"], {"pixels": pixels})
        return np.asarray(features[:n], dtype=np.float32)

    def encode_text(self, sequences: Sequences) -> FloatArray:
        """Encode the assembled sequences of C classes to (C, E) features of unit length.

        Raises:
            PromptFileInvalid: the sequences have vectors for a different number of blocks.
        """
        inputs = text_inputs(sequences, self.bundle.manifest.text_layers)
        (features,) = self._text_session.run(["class_features"], inputs)
        self.last_text_success = time.monotonic()
        return np.asarray(features, dtype=np.float32)

    def check_text_encoder(self) -> None:
        """Run the text graph on one short class name.

        Raises:
            ServiceError: the features are not finite.
        """
        features = class_features(self._probe_prompt, self.bundle.text_side, self.encode_text)
        if not np.isfinite(features).all():
            raise ServiceError("The text encoder returned NaN or infinite class features.")

    def warm_up(self) -> None:
        """Run every batch size and the text graph once, so that no request pays for a first run."""
        side = self._image_size
        for size in self._warm_up_sizes:
            self.encode_images(np.zeros((size, side, side, 3), dtype=np.uint8))
        largest = np.zeros((self._warm_up_sizes[-1], side, side, 3), dtype=np.uint8)
        started = time.monotonic()
        self.encode_images(largest)
        self.slowest_batch_s = time.monotonic() - started
        self.check_text_encoder()


def _probe_prompt(bundle: Bundle) -> Prompt:
    return Prompt(
        name="probe",
        method="zero-shot",
        class_names=("cat",),
        templates=(DEFAULT_TEMPLATE,),
        backbone=bundle.manifest.backbone,
        probe=np.zeros(1, dtype=np.float16),
    )


def batch_buckets(max_batch: int) -> list[int]:
    """Return 1, 2, 4, ... and ``max_batch``, which is always the last."""
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
    # Threads may spin between two operators, which is fast, but not between two batches: they would
    # take the cores from the threads that decode the next images.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Work in small blocks: a thread that briefly loses its core to a decoding thread then does not
    # hold up all others with a large block.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    options.log_severity_level = 3
    expected = _CPU if cuda_device is None else _CUDA
    providers = [(_CPU, {})] if cuda_device is None else _cuda_providers(cuda_device)
    try:
        session = ort.InferenceSession(path, sess_options=options, providers=providers)
    # ONNX Runtime's own exceptions share no base class but Exception.
    except Exception as error:
        if cuda_device is not None:
            raise _cuda_unavailable(cuda_device, str(error)) from error
        raise BundleInvalid(f"{path} cannot be loaded: {error}", path=path) from error
    # Neither get_available_providers() nor disable_fallback() prevents a silent fallback.
    active = session.get_providers()[0]
    if active != expected:
        raise _cuda_unavailable(cuda_device, f"the session runs on {active}")
    if misplaced := nodes_on_other_providers(session, expected):
        nodes = ", ".join(f"{count} {op}" for op, count in misplaced.most_common())
        raise _cuda_unavailable(
            cuda_device,
            f"it leaves matrix products in {Path(path).name} to another provider ({nodes}); an "
            f"int8 bundle is for CPUs, export one with --precision fp16",
        )
    return session


def _cuda_providers(device: int) -> list[tuple[str, dict[str, Any]]]:
    """Return CUDA with its options: no TF32, whose rounding of the text encoder fails the probe."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries of the nvidia-* wheels
    options = {
        "device_id": device,
        "use_tf32": 0,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return [(_CUDA, options)]


def _cuda_unavailable(device: int | None, reason: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        f"CUDA device {device} was requested, but ONNX Runtime {ort.__version__} cannot run on it: "
        f"{reason}. Providers built into this onnxruntime: "
        f"{', '.join(ort.get_available_providers())}. Check the driver (nvidia-smi) and the CUDA "
        f"and cuDNN libraries, or set PROMPT_SERVE_DEVICE=cpu.",
        reason=reason,
    )
