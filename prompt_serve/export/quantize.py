"""Eight-bit image encoders for CPUs.

Matrix products with constant weights are quantized: weights once, a scale for every output
channel; activations as they come, a scale for every batch (``DynamicQuantizeLinear``). No
calibration images are needed and no activation is ever cut off. Those products are about 90 % of a
vision transformer's work. Convolutions stay float32: quantized with fixed scales they lose too much
in depthwise layers, so a convolutional tower gains little from ``int8``.
"""

from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from prompt_serve.export.quiet import quiet_libraries

_PRODUCTS = ("MatMul", "Gemm")


def quantize(model: onnx.ModelProto, path: Path) -> None:
    """Write an eight-bit version of an image graph to ``path``."""
    with quiet_libraries():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=list(_PRODUCTS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Seven bits: processors without VNNI add pairs of products in 16 bits, which overflow
            # with eight (cosine to fp32 0.993 instead of 0.9998 for a ViT-B/16).
            reduce_range=True,
            # onnx cannot infer types behind onnxruntime's own operators.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def quantized_share(model: onnx.ModelProto) -> float:
    """The part of a graph's weights, 0 to 1, that ``quantize`` turns into eight bits."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    products = (node for node in model.graph.node if node.op_type in _PRODUCTS)
    quantized = {name for node in products for name in node.input if name in sizes}
    return sum(sizes[name] for name in quantized) / max(1, sum(sizes.values()))
