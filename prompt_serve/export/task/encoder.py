"""Image encoder of a bundle as a graph of its own: all weights inside, and a task's image vectors.

The result takes ``pixels`` (B, S, S, 3) uint8 and nothing else, and returns ``image_features``.
"""

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from prompt_serve.bundle import Bundle
from prompt_serve.errors import ConfigInvalid
from prompt_serve.export.quantize import quantize
from prompt_serve.prompts.image_rows import ImageRows, image_inputs

TaskPrecision = Literal["fp32", "int8"]
# Axis of the images in the inputs of the prompted image graph.
_IMAGE_AXES = {"rows": 0, "rows_block": 0, "rows_used": 0, "keys": 1, "values": 1, "keys_used": 1}


def encoder_graph(
    bundle: Bundle, rows: ImageRows | None, precision: TaskPrecision
) -> onnx.ModelProto:
    """Return the image encoder.

    Args:
        bundle: the backbone.
        rows: image vectors of the task.
        precision: int8 quantizes the encoder of an fp32 bundle.

    Raises:
        ConfigInvalid: the bundle's encoder cannot have this precision.
    """
    given = bundle.manifest.precision
    if given not in (precision, "fp32"):
        raise ConfigInvalid(
            f"The bundle {bundle.path} is {given}; a task of {precision} needs a bundle of fp32. "
            f"Make one with: prompt-serve export {bundle.manifest.backbone.id} -o FOLDER"
        )
    path = bundle.image_encoder if rows is None else bundle.prompted_image_encoder
    model = onnx.load(path) if precision == given else _quantized(path)
    return model if rows is None else _with_rows(model, rows)


def _quantized(path: Path) -> onnx.ModelProto:
    """Quantize a graph; before that, weights that it computes from stored ones become constants."""
    with tempfile.TemporaryDirectory() as folder:
        folded, quantized = Path(folder) / "folded.onnx", Path(folder) / "int8.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 3
        whole = onnx.load(path).SerializeToString()  # not its path: weights may be in other files
        ort.InferenceSession(whole, options, providers=["CPUExecutionProvider"])
        quantize(onnx.load(folded), quantized)
        return onnx.load(quantized)


def _with_rows(model: onnx.ModelProto, rows: ImageRows) -> onnx.ModelProto:
    """Make the vectors of a task constants, repeated for every image."""
    graph, layers, width = model.graph, len(rows.keys), rows.entering.shape[1]
    nodes = [
        helper.make_node("Shape", ["pixels"], ["task.images"], start=0, end=1),  # (1,): B
    ]
    for name, one in image_inputs([rows], layers=layers, width=width).items():
        graph.initializer.append(numpy_helper.from_array(one, f"task.{name}"))
        shape = []
        for axis, length in enumerate(one.shape):
            if axis == _IMAGE_AXES[name]:
                shape.append("task.images")
                continue
            graph.initializer.append(
                numpy_helper.from_array(np.array([length]), f"task.{name}.{axis}")
            )
            shape.append(f"task.{name}.{axis}")
        nodes.append(helper.make_node("Concat", shape, [f"task.{name}.shape"], axis=0))
        nodes.append(helper.make_node("Expand", [f"task.{name}", f"task.{name}.shape"], [name]))
    pixels = [value for value in graph.input if value.name == "pixels"]
    del graph.input[:]
    graph.input.extend(pixels)
    _prepend(graph, nodes)
    return model


def _prepend(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Put nodes in front: a graph's nodes are in the order of their computation."""
    former = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *former])
