"""Image encoder of a bundle in OpenVINO, on the CPU: fp32, bf16 and int8.

It reads the bundle's ONNX graph, of int8 bundles one of its own (``export.openvino_int8``). What is
not a quantized product in an int8 graph is computed in bf16 where the processor has instructions
for it, else in float32. Learned vectors of the image tower run in ONNX Runtime.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from prompt_serve.bundle import Bundle
from prompt_serve.engines.onnx_images import prompted_images
from prompt_serve.engines.onnx_session import CPU, open_session
from prompt_serve.errors import BundleInvalid, DependencyMissing, ProviderUnavailable
from prompt_serve.types import EngineName, FloatArray, PixelArray, Precision

_DEVICE = "CPU"
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution")  # operators of OpenVINO's executed graph
_TYPES: Mapping[Precision, tuple[str, ...]] = {
    "fp32": ("f32",),
    "bf16": ("bf16",),
    "int8": ("i8", "u8"),
}


class OpenVinoImages:
    """Image encoder of a bundle in OpenVINO; an ``ImageEngine``.

    Args:
        bundle: an exported backbone.
        threads: number of threads.

    Raises:
        DependencyMissing: OpenVINO is not installed.
        ProviderUnavailable: it cannot run this bundle in its precision on this machine.
        BundleInvalid: the graph cannot be loaded.
    """

    name: EngineName = "openvino"
    batch_sizes: Sequence[int] = ()

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        check(bundle)
        ov = _openvino()
        self.precision: Precision = bundle.manifest.precision
        self.runtime = f"openvino {ov.__version__.partition('-')[0]}"
        core = ov.Core()
        self.provider = f"OpenVINO {_DEVICE}"
        self._compiled = _compile(core, bundle, threads)
        self._check_placement()
        self._request = self._compiled.create_infer_request()
        self._lock = threading.Lock()  # a request runs one batch at a time
        self.prompted = prompted_images(
            bundle, partial(open_session, provider=CPU, threads=threads)
        )

    @property
    def placement(self) -> Mapping[str, int]:
        """Number of matrix products by the types in which they are computed."""
        return Counter(
            f"{_DEVICE} {_text(facts['runtimePrecision'])}"
            for node in self._compiled.get_runtime_model().get_ordered_ops()
            if _text((facts := node.get_rt_info())["layerType"]) in _PRODUCTS
        )

    def encode(self, pixels: PixelArray) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features of unit length."""
        with self._lock:
            features = self._request.infer({"pixels": pixels}, share_inputs=True)
            return np.array(features["image_features"], dtype=np.float32)

    def _check_placement(self) -> None:
        """Check that the matrix products are computed in the bundle's precision.

        An int8 graph may keep a few in more bits, as the quantizer decides.
        """
        types = [f"{_DEVICE} {one}" for one in _TYPES[self.precision]]
        placed = self.placement
        inside = sum(placed.get(one, 0) for one in types)
        total = sum(placed.values())
        if inside < total if self.precision != "int8" else inside < total / 2:
            found = ", ".join(f"{count} in {one}" for one, count in placed.items())
            raise ProviderUnavailable(
                f"OpenVINO does not compute this bundle in {self.precision} on this machine: its "
                f"matrix products run {found}. Set PROMPT_SERVE_ENGINE=onnxruntime, or export "
                f"with --precision fp32.",
                reason=found,
            )


def is_installed() -> bool:
    """Return True where the extra ``openvino`` is installed."""
    return find_spec("openvino") is not None


def check(bundle: Bundle) -> None:
    """Check that OpenVINO is installed and can run a bundle on this machine.

    Raises:
        DependencyMissing: it is not installed.
        ProviderUnavailable: it cannot run the bundle.
    """
    core, precision = _openvino().Core(), bundle.manifest.precision
    if precision == "fp16":
        raise _unavailable(bundle, "fp16 is for CUDA: export with --precision bf16, fp32 or int8")
    if bundle.openvino_image_encoder is None:
        raise _unavailable(
            bundle,
            "this int8 bundle has no graph for it: pip install 'prompt-serve[openvino-int8]' and "
            "export again",
        )
    if precision == "bf16" and not _has_bf16(core):
        raise _unavailable(
            bundle, "this processor has no bf16: export with --precision fp32 or int8"
        )


def _unavailable(bundle: Bundle, reason: str) -> ProviderUnavailable:
    return ProviderUnavailable(f"OpenVINO cannot run {bundle.path}: {reason}.", reason=reason)


def _openvino() -> Any:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise DependencyMissing(
            "PROMPT_SERVE_ENGINE=openvino and bf16 need OpenVINO: "
            "pip install 'prompt-serve[openvino]'",
            package="openvino",
            extra="openvino",
        ) from error
    return openvino


def _compile(core: Any, bundle: Bundle, threads: int) -> Any:
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _hint(core, bundle.manifest.precision),
        "ENABLE_CPU_PINNING": False,  # threads that decode images need the same cores
    }
    path = bundle.openvino_image_encoder
    try:
        return core.compile_model(core.read_model(str(path)), _DEVICE, settings)
    except RuntimeError as error:
        raise BundleInvalid(f"{path} cannot be loaded: {error}", path=str(path)) from error


def _hint(core: Any, precision: Precision) -> str:
    """Return the type of all that is not quantized."""
    return "bf16" if precision == "bf16" or (precision == "int8" and _has_bf16(core)) else "f32"


def _has_bf16(core: Any) -> bool:
    return "BF16" in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")


def _text(value: Any) -> str:
    """Return a fact of the executed graph, which is an OVAny or a str."""
    return str(value.astype(str) if hasattr(value, "astype") else value)
