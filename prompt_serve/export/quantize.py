"""Quantize image encoders to eight bits for CPUs.

Matrix products with constant weights are quantized: weights once, with one scale per output
channel; activations dynamically, with one scale per batch (``DynamicQuantizeLinear``). This needs
no calibration images and never clips an activation. These products are about 90 % of the work of a
vision transformer. Convolutions stay float32, because fixed scales lose too much accuracy in
depthwise layers; a convolutional tower therefore gains little from ``int8``.
"""

from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from prompt_serve.export.quiet import quiet_libraries

_PRODUCTS = ("MatMul", "Gemm")


def quantize(model: onnx.ModelProto, path: Path) -> None:
    """Quantize an image graph and write it to ``path``."""
    with quiet_libraries():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=list(_PRODUCTS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Seven bits: processors without VNNI add pairs of products in 16 bits, which overflow
            # with eight-bit weights (cosine to fp32 0.993 instead of 0.9998 for a ViT-B/16).
            reduce_range=True,
            # onnx cannot infer the output types of ONNX Runtime's own operators.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def quantized_share(model: onnx.ModelProto) -> float:
    """Return the share of a graph's weights, 0 to 1, that ``quantize`` would quantize."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    products = (node for node in model.graph.node if node.op_type in _PRODUCTS)
    quantized = {name for node in products for name in node.input if name in sizes}
    return sum(sizes[name] for name in quantized) / max(1, sum(sizes.values()))
