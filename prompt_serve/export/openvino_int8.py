"""Quantize an image graph to eight bits for OpenVINO, with NNCF.

Unlike ``quantize``, which measures activations in every batch, NNCF fixes their scales from images
that are run once here (post-training quantization), smooths outliers into the weights and corrects
biases. OpenVINO then computes the attention's products in eight bits as well.
"""

import os
from pathlib import Path
from typing import Any

from prompt_serve.errors import DependencyMissing
from prompt_serve.export.quiet import quiet_libraries
from prompt_serve.types import PixelArray

_BATCH = 4  # images


def quantize_for_openvino(graph: Path, target: Path, images: PixelArray) -> None:
    """Quantize a float32 image graph and write it, with its weights in a .bin file beside it.

    Args:
        graph: ONNX file.
        target: .xml file to write.
        images: pixels (N, S, S, 3) whose activations fix the scales.

    Raises:
        DependencyMissing: the extra ``openvino-int8`` is not installed.
    """
    nncf, openvino = _libraries()
    batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    with quiet_libraries():
        quantized = nncf.quantize(
            openvino.Core().read_model(str(graph)),
            nncf.Dataset(batches, lambda pixels: {"pixels": pixels}),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )
    openvino.save_model(quantized, str(target), compress_to_fp16=False)


def _libraries() -> tuple[Any, Any]:
    """Import NNCF and OpenVINO; NNCF sends usage statistics unless it believes to be in CI."""
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with quiet_libraries():
            import nncf
            import openvino
    except ModuleNotFoundError as error:
        raise DependencyMissing(
            "An int8 graph for OpenVINO needs NNCF: pip install 'prompt-serve[openvino-int8]', or "
            "export with --no-openvino",
            package=error.name or "nncf",
            extra="openvino-int8",
        ) from error
    nncf.set_log_level(30)  # warnings
    return nncf, openvino
