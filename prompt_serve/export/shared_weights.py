"""Let a graph read its weights from the file of another graph of the same tower.

The prompted image graph has the weights of the plain one. Each tensor whose bytes the plain graph's
file holds becomes ONNX external data: a place in that file.
"""

from hashlib import sha256
from pathlib import Path

import onnx

from prompt_serve.export.stored_weights import refer

_SMALLEST = 512  # bytes; smaller weights stay inside the graph


def share_weights(model: onnx.ModelProto, graph: Path) -> None:
    """Replace the weights that another graph's file holds by references to it.

    Args:
        model: graph that will lie in the same folder.
        graph: file of the other one, which holds its weights itself.
    """
    places = _places(graph)
    for tensor in model.graph.initializer:
        key = _key(tensor)
        if key in places:
            refer(tensor, graph.name, offset=places[key], length=len(tensor.raw_data))


def _places(graph: Path) -> dict[bytes, int]:
    """Return the offset in the file of every large weight, by content."""
    data, position, places = graph.read_bytes(), 0, {}
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if len(tensor.raw_data) >= _SMALLEST:
            # They are written in this order, so that each search is short.
            position = data.index(tensor.raw_data, position)
            places[_key(tensor)] = position
            position += len(tensor.raw_data)
    return places


def _key(tensor: onnx.TensorProto) -> bytes:
    return sha256(tensor.raw_data).digest()
