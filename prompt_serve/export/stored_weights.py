"""Let a graph read its weights from the safetensors file that the backbone came from.

The file holds float16; the graph computes in float32. A weight that equals a stored tensor becomes
ONNX external data: a place in the safetensors file, and a Cast. ONNX Runtime folds the casts when
it opens the graph, so that a request pays nothing for them.

    equal to a stored tensor, or to a third of one    Cast
    its transpose                                     Cast, Transpose
    scaled per output channel (batch normalization    Cast, Mul
    that the exporter folded into a convolution)

Everything else stays inside the graph.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prompt_serve.types import FloatArray, HalfArray

_SMALLEST = 128  # numbers; smaller weights stay inside the graph
_THIRDS = 3  # query, key and value rows of an attention's input projection
_SCALE_TOLERANCE = 1e-6  # relative; a product of two float32 numbers is rounded by 6e-8


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Float16 numbers in a safetensors file."""

    values: HalfArray
    offset: int  # of the first byte, from the start of the file

    @property
    def wide(self) -> FloatArray:
        """The values as float32, which is exact."""
        return self.values.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class _Place:
    stored: StoredTensor
    transposed: bool = False
    scale: FloatArray | None = None  # (O,) per output channel


def read_stored(path: Path) -> dict[str, StoredTensor]:
    """Return the float16 tensors of a safetensors file by name, with their places in the file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    stored = {}
    for name, entry in sorted(json.loads(data[8:start]).items()):
        if entry.get("dtype") == "F16":
            begin, end = (start + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[begin:end], dtype="<f2").reshape(entry["shape"])
            stored[name] = StoredTensor(values=values, offset=begin)
    return stored


def with_stored_weights(
    model: onnx.ModelProto, stored: Mapping[str, StoredTensor], location: str
) -> onnx.ModelProto:
    """Return the graph with its weights in a safetensors file wherever they are equal.

    Args:
        model: float32 graph.
        stored: tensors of the safetensors file.
        location: path of that file, relative to the graph's folder.
    """
    places = _Places(stored)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.initializer[:]
    nodes: list[onnx.NodeProto] = []
    for tensor in model.graph.initializer:
        place = places.find(tensor)
        if place is None:
            changed.graph.initializer.append(tensor)
        else:
            changed.graph.initializer.extend(_tensors(tensor, place, location))
            nodes += _nodes(tensor.name, place)
    del changed.graph.node[:]
    changed.graph.node.extend([*nodes, *model.graph.node])
    return changed


def size_inside(model: onnx.ModelProto) -> int:
    """Return the size in bytes of the weights that a graph holds itself."""
    return sum(
        numpy_helper.to_array(tensor).nbytes
        for tensor in model.graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL
    )


class _Places:
    """Stored tensors, found by the float32 numbers they stand for."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self._by_content: dict[bytes, _Place] = {}
        self._by_shape: dict[tuple[int, ...], list[StoredTensor]] = {}
        for tensor in stored.values():
            self._by_shape.setdefault(tensor.values.shape, []).append(tensor)
            for part in (tensor, *_thirds(tensor)):
                self._by_content.setdefault(_digest(part.wide), _Place(stored=part))
                if part.values.ndim == 2:
                    turned = _Place(stored=part, transposed=True)
                    self._by_content.setdefault(_digest(part.wide.T), turned)

    def find(self, tensor: onnx.TensorProto) -> _Place | None:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _SMALLEST:
            return None
        return self._by_content.get(_digest(values)) or self._scaled(values)

    def _scaled(self, values: FloatArray) -> _Place | None:
        """Return the stored tensor that a convolution's weights are multiples of, per channel."""
        if values.ndim != 4:
            return None
        for stored in self._by_shape.get(values.shape, ()):
            scale = _scale_per_channel(values, stored.wide)
            if scale is not None:
                return _Place(stored=stored, scale=scale)
        return None


def _thirds(tensor: StoredTensor) -> Iterator[StoredTensor]:
    if len(tensor.values.shape) and tensor.values.shape[0] % _THIRDS == 0:
        size = tensor.values.nbytes // _THIRDS
        for index, part in enumerate(np.split(tensor.values, _THIRDS)):
            yield StoredTensor(values=part, offset=tensor.offset + index * size)


def _scale_per_channel(values: FloatArray, stored: FloatArray) -> FloatArray | None:
    """Return s (O,) with ``values = s * stored`` per output channel; None if there is none."""
    rows, stored_rows = (array.reshape(len(array), -1) for array in (values, stored))
    largest = np.abs(stored_rows).argmax(axis=1)
    channels = np.arange(len(rows))
    divisors = stored_rows[channels, largest]
    scale: FloatArray = rows[channels, largest] / np.where(divisors, divisors, 1)  # 0 if all are
    error = np.abs(scale[:, np.newaxis] * stored_rows - rows).max(axis=1)
    return scale if (error <= _SCALE_TOLERANCE * np.abs(rows).max(axis=1)).all() else None


def _digest(values: FloatArray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()


def _tensors(tensor: onnx.TensorProto, place: _Place, location: str) -> list[onnx.TensorProto]:
    """Return the reference to the file, and the scale if there is one."""
    reference = TensorProto(
        name=f"{tensor.name}.stored",
        data_type=TensorProto.FLOAT16,
        dims=tensor.dims[::-1] if place.transposed else tensor.dims,
    )
    refer(reference, location, offset=place.stored.offset, length=place.stored.values.nbytes)
    if place.scale is None:
        return [reference]
    per_channel = place.scale.reshape(-1, *[1] * (len(tensor.dims) - 1))
    return [reference, numpy_helper.from_array(per_channel, f"{tensor.name}.scale")]


def refer(tensor: onnx.TensorProto, location: str, *, offset: int, length: int) -> None:
    """Make a tensor a reference to ``length`` bytes of a file beside the graph."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _nodes(name: str, place: _Place) -> list[onnx.NodeProto]:
    further = place.transposed or place.scale is not None
    wide = f"{name}.wide" if further else name
    cast = helper.make_node("Cast", [f"{name}.stored"], [wide], wide, to=TensorProto.FLOAT)
    if place.transposed:
        return [cast, helper.make_node("Transpose", [wide], [name], name, perm=[1, 0])]
    if place.scale is not None:
        return [cast, helper.make_node("Mul", [wide, f"{name}.scale"], [name], name)]
    return [cast]
