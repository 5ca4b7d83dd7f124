"""Image and text encoder of a bundle, run by ONNX Runtime: for the service, and to learn from.

Sessions run on the requested device or not at all: there is no silent fallback.
"""

import os
import threading
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from prompt_serve.bundle import Bundle
from prompt_serve.errors import BackboneUnsupported, BundleInvalid, ProviderUnavailable
from prompt_serve.ort_placement import RECORD_ASSIGNMENT, nodes_on_other_providers
from prompt_serve.preprocess import Preprocessing
from prompt_serve.prompts.image_rows import ImageRows, image_inputs, lay_out
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.prompts.text_inputs import text_inputs
from prompt_serve.types import BackboneRef, FloatArray, PixelArray

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CPU_BATCH, CUDA_BATCH = 8, 32  # images


class OnnxEncoders:
    """Both encoders of a bundle. Thread-safe, as ONNX Runtime's sessions are.

    Args:
        bundle: an exported backbone.
        image_session: from ``open_session``, of ``bundle.image_encoder``.
        text_session: of ``bundle.text_encoder``.
        open_graph: opens the further graphs, when they are first needed.
    """

    def __init__(
        self,
        bundle: Bundle,
        image_session: ort.InferenceSession,
        text_session: ort.InferenceSession,
        open_graph: Callable[[Path], ort.InferenceSession],
    ) -> None:
        self.bundle = bundle
        self._image_session, self._text_session = image_session, text_session
        self._prompted = _prompted_images(bundle, open_graph)

    @classmethod
    def open(cls, bundle: Bundle, *, cuda_device: int | None, threads: int) -> "OnnxEncoders":
        """Open both graphs on one device; see ``open_session``."""
        open_graph = partial(open_session, cuda_device=cuda_device, threads=threads)
        return cls(
            bundle, open_graph(bundle.image_encoder), open_graph(bundle.text_encoder), open_graph
        )

    @property
    def ref(self) -> BackboneRef:
        """The backbone."""
        return self.bundle.manifest.backbone

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become pixels."""
        return self.bundle.manifest.preprocessing

    @property
    def runtime(self) -> str:
        """What runs the image encoder, and in which precision."""
        return f"onnxruntime {self.bundle.manifest.precision}"

    @property
    def batch_size(self) -> int:
        """Images to encode at once where speed counts, not the delay of one."""
        return CPU_BATCH if self.provider == _CPU else CUDA_BATCH

    @property
    def provider(self) -> str:
        """Execution provider of the image encoder."""
        return str(self._image_session.get_providers()[0])

    @property
    def text_provider(self) -> str:
        """Execution provider of the text encoder."""
        return str(self._text_session.get_providers()[0])

    def encode_pixels(self, pixels: PixelArray) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features of unit length."""
        (features,) = self._image_session.run(["image_features"], {"pixels": pixels})
        return np.asarray(features, dtype=np.float32)

    @property
    def prompted(self) -> "PromptedImages":
        """The image encoder that takes learned vectors.

        Raises:
            BackboneUnsupported: this image tower takes none.
        """
        if self._prompted is None:
            raise BackboneUnsupported(
                f"The image tower of {self.ref.id!r} takes no learned vectors: it is no plain "
                f"vision transformer, as that of 'embedded-vit' or ViT-B-16 is. On this backbone, "
                f"train a text prompt: method 'dip' or 'coop'."
            )
        return self._prompted

    def encode_text(self, sequences: Sequences) -> FloatArray:
        """Encode the assembled sequences of C classes to (C, E) features of unit length.

        Raises:
            PromptFileInvalid: the sequences have vectors for a different number of blocks.
        """
        inputs = text_inputs(sequences, self.bundle.manifest.text_layers)
        (features,) = self._text_session.run(["class_features"], inputs)
        return np.asarray(features, dtype=np.float32)


class PromptedImages:
    """Prompted image graph and row graph of a bundle. Thread-safe.

    The sessions are opened when they are first used: a service without such tasks has no second
    copy of the weights in memory.

    Args:
        encoder: prompted image graph.
        rows: row graph.
        layers: L, blocks of the image tower.
        width: D, its width.
        open_graph: opens a session.
    """

    def __init__(
        self,
        encoder: Path,
        rows: Path,
        *,
        layers: int,
        width: int,
        open_graph: Callable[[Path], ort.InferenceSession],
    ) -> None:
        self._paths = encoder, rows
        self._open = open_graph
        self._sizes = {"layers": layers, "width": width}
        self._lock = threading.Lock()

    def lay_out(self, vectors: PromptVectors[FloatArray]) -> ImageRows | None:
        """Project the folded image branch of a prompt; None if there is none.

        Raises:
            PromptFileInvalid: the vectors are for another tower.
            BundleInvalid, ProviderUnavailable: the graph cannot be opened.
        """
        if vectors.context is None and not vectors.keys_values:
            return None
        return lay_out(vectors, **self._sizes, project=self._project)

    def encode(self, pixels: PixelArray, rows: Sequence[ImageRows | None]) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels, each with the rows of its task, to (B, E) features.

        Raises:
            BundleInvalid, ProviderUnavailable: the graph cannot be opened.
        """
        encoder = self._encoder
        in_steps = encoder.get_providers()[0] == _CUDA
        inputs = {"pixels": pixels, **image_inputs(rows, **self._sizes, in_steps=in_steps)}
        (features,) = encoder.run(["image_features"], inputs)
        return np.asarray(features, dtype=np.float32)

    def _project(
        self, context: FloatArray, rows: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        entering, keys, values = self._rows.run(
            ["entering", "keys", "values"], {"context": context, "rows": rows}
        )
        return entering, keys, values

    @property
    def _encoder(self) -> ort.InferenceSession:
        with self._lock:
            return self._encoder_session

    @property
    def _rows(self) -> ort.InferenceSession:
        with self._lock:
            return self._rows_session

    @cached_property
    def _encoder_session(self) -> ort.InferenceSession:
        return self._open(self._paths[0])

    @cached_property
    def _rows_session(self) -> ort.InferenceSession:
        return self._open(self._paths[1])


def _prompted_images(
    bundle: Bundle, open_graph: Callable[[Path], ort.InferenceSession]
) -> PromptedImages | None:
    size = bundle.manifest.image_tower
    if size is None:
        return None
    return PromptedImages(
        bundle.prompted_image_encoder,
        bundle.image_rows,
        layers=size.layers,
        width=size.width,
        open_graph=open_graph,
    )


def open_session(path: Path, *, cuda_device: int | None, threads: int) -> ort.InferenceSession:
    """Open a graph on a CUDA device, or on the CPU where None.

    Args:
        path: the graph.
        cuda_device: index of a CUDA device.
        threads: number of threads of the CPU kernels.

    Raises:
        ProviderUnavailable: CUDA was requested and does not run. ONNX Runtime would fall back to
            the CPU silently.
        BundleInvalid: the graph cannot be loaded.
    """
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
        session = ort.InferenceSession(str(path), sess_options=options, providers=providers)
    # ONNX Runtime's own exceptions share no base class but Exception.
    except Exception as error:
        if cuda_device is not None:
            raise _cuda_unavailable(cuda_device, str(error)) from error
        raise BundleInvalid(f"{path} cannot be loaded: {error}", path=str(path)) from error
    # Neither get_available_providers() nor disable_fallback() prevents a silent fallback.
    active = session.get_providers()[0]
    if active != expected:
        raise _cuda_unavailable(cuda_device, f"the session runs on {active}")
    if misplaced := nodes_on_other_providers(session, expected):
        nodes = ", ".join(f"{count} {op}" for op, count in misplaced.most_common())
        raise _cuda_unavailable(
            cuda_device,
            f"it leaves matrix products in {path.name} to another provider ({nodes}); an "
            f"int8 bundle is for CPUs, export one with --precision fp16",
        )
    return session


def available_cores() -> int:
    """Return the cores this process may use (a container's CPU set counts, its quota does not)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
