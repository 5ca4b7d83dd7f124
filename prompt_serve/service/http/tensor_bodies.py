"""Read and write arrays as bodies: npy and safetensors. Nothing is ever unpickled.

An npy file is one array. A safetensors file contains one tensor of any name; its metadata may name
the backbone of embeddings (``fingerprint``).
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from prompt_serve.errors import ImageInvalid, PromptServeError, RequestInvalid, counted
from prompt_serve.scoring import unit
from prompt_serve.types import FloatArray, PixelArray

NPY = "application/x-npy"
SAFETENSORS = "application/x-safetensors"
TENSOR_TYPES = (NPY, SAFETENSORS)

_MAX_NPY_HEADER_BYTES = 1_000  # numpy writes 118
_MAX_SAFETENSORS_HEADER_BYTES = 2**16
_MAX_AXES = 4  # of images
_FLOATS = ("float16", "float32", "float64")
# Rounding of float16 next to 0 or 1; pixels beyond it are on another scale.
_PIXEL_SLACK = 1e-3

AnyArray = NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """An array and the metadata of its file."""

    array: AnyArray
    metadata: dict[str, str]


def read_tensor(data: bytes, kind: str) -> Tensor:
    """Parse a body of one of ``TENSOR_TYPES``.

    Raises:
        RequestInvalid: the body is not such a file, or not one array of a supported type.
    """
    tensor = _read_npy(data) if kind == NPY else _read_safetensors(data)
    if tensor.array.dtype.name not in (*_FLOATS, "uint8"):
        raise RequestInvalid(
            f"The tensor has the type {tensor.array.dtype}; expected uint8, {', '.join(_FLOATS)}."
        )
    return tensor


def pixels_from_array(array: AnyArray, image_size: int) -> list[PixelArray]:
    """Split an (N, S, S, 3) or (S, S, 3) array into N preprocessed images, each (S, S, 3) uint8.

    Floats are pixels divided by 255, as from torchvision's ``ToTensor``; they are rounded back to
    whole numbers. Normalized pixels are rejected: the normalization cannot be undone in a unique
    way, and the image graph applies it itself.

    Raises:
        RequestInvalid: a different shape, or floats outside 0..1.
    """
    images = array[np.newaxis] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[1:] != (image_size, image_size, 3):
        hint = " Send embeddings to POST /v1/score." if array.ndim <= 2 else ""
        raise RequestInvalid(
            f"The tensor has the shape {array.shape}; expected (N, {image_size}, {image_size}, 3): "
            f"resized and cropped RGB images, channels last.{hint}"
        )
    if images.dtype != np.uint8:
        images = _from_unit_scale(images)
    return list(np.ascontiguousarray(images))


def embeddings_from_array(array: AnyArray, width: int) -> list[FloatArray | PromptServeError]:
    """Scale each row of an (N, E) or (E,) array of floats to unit length.

    Embeddings of any length are accepted, since a score is a cosine. A row of zeros or with numbers
    that are not finite becomes an error of its own.

    Raises:
        RequestInvalid: a different shape or width, or integers.
    """
    rows = array[np.newaxis] if array.ndim == 1 else array
    if rows.ndim != 2 or rows.shape[1] != width or rows.dtype.name not in _FLOATS:
        raise RequestInvalid(
            f"The embeddings are {array.dtype} {array.shape}; expected floats (N, {width}) as from "
            f"POST /v1/embed: embeddings of this backbone have {width} numbers."
        )
    # The square of a float32 cannot overflow in float64.
    numbers = rows.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(numbers, axis=1)
    is_valid = np.isfinite(lengths) & (lengths > 0)
    numbers[~is_valid] = 0.0
    scaled = unit((numbers / np.where(is_valid, lengths, 1.0)[:, np.newaxis]).astype(np.float32))
    return [row if valid else _no_direction() for row, valid in zip(scaled, is_valid, strict=True)]


def embeddings_from_lists(
    rows: Sequence[Sequence[float]], width: int
) -> list[FloatArray | PromptServeError]:
    """Scale lists of numbers from JSON to unit length, as ``embeddings_from_array`` does.

    Raises:
        RequestInvalid: a list has a different length.
    """
    for index, row in enumerate(rows):
        if len(row) != width:
            raise RequestInvalid(
                f"Embedding {index} has {counted(len(row), 'number')}; expected {width}, the "
                f"width of this backbone's embeddings."
            )
    numbers = np.empty((len(rows), width))
    for place, row in zip(numbers, rows, strict=True):  # row by row: other threads have their turn
        place[...] = row
    return embeddings_from_array(numbers, width)


def npy_bytes(array: FloatArray) -> bytes:
    """Serialize an array as an npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def safetensors_bytes(name: str, array: FloatArray, metadata: Mapping[str, object]) -> bytes:
    """Serialize an array as a safetensors file; metadata other than text is written as JSON."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    return save({name: np.ascontiguousarray(array)}, metadata=texts)


def _read_npy(data: bytes) -> Tensor:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file, max_header_size=_MAX_NPY_HEADER_BYTES)
    # A header is a Python literal; the exception depends on where a malformed one is malformed.
    except (ValueError, SyntaxError, TokenError, LookupError, TypeError, RecursionError) as error:
        raise RequestInvalid(f"The body is not an npy file: {error}") from error
    if dtype.hasobject:
        raise RequestInvalid("The npy file contains Python objects; expected an array of numbers.")
    if len(shape) > _MAX_AXES:
        raise RequestInvalid(f"The npy file has {len(shape)} axes; expected 1 to {_MAX_AXES}.")
    start = file.tell()
    expected_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(data) - start != expected_bytes or any(side < 0 for side in shape):
        raise RequestInvalid(
            f"The npy file declares {dtype} {shape}, which is {expected_bytes:,} bytes, but "
            f"contains {len(data) - start:,}."
        )
    array = np.frombuffer(data, dtype=dtype, offset=start).reshape(
        shape, order="F" if is_fortran else "C"
    )
    return Tensor(array, {})


def _read_safetensors(data: bytes) -> Tensor:
    header_bytes = int.from_bytes(data[:8], "little")
    if _MAX_SAFETENSORS_HEADER_BYTES < header_bytes <= len(data):
        raise RequestInvalid(
            f"The header of the safetensors file has {header_bytes:,} bytes; that of one tensor "
            f"has at most {_MAX_SAFETENSORS_HEADER_BYTES:,}."
        )
    try:
        tensors = load(data)
    # safetensors has number formats that numpy lacks (KeyError, AttributeError).
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestInvalid(f"The body is not a readable safetensors file: {error}") from error
    if len(tensors) != 1:
        names = ", ".join(sorted(tensors)[:10]) or "none"
        raise RequestInvalid(
            f"The safetensors file contains {len(tensors)} tensors ({names}); expected 1."
        )
    (array,) = tensors.values()
    # ``load`` has checked the format: 8 bytes with the header's length, then the header in JSON.
    header = json.loads(data[8 : 8 + header_bytes])
    return Tensor(array, header.get("__metadata__") or {})


def _from_unit_scale(images: AnyArray) -> PixelArray:
    numbers = images.astype(np.float32)
    lowest, highest = float(numbers.min(initial=0.0)), float(numbers.max(initial=0.0))
    # Written so that NaN, which compares false, is rejected.
    if not (lowest >= -_PIXEL_SLACK and highest <= 1 + _PIXEL_SLACK):
        raise RequestInvalid(
            f"The pixels are {images.dtype} from {lowest:.4g} to {highest:.4g}; expected floats in "
            f"0..1. Send uint8, or pixels without mean and standard deviation applied: the service "
            f"normalizes them itself."
        )
    return np.clip(np.rint(numbers * 255), 0, 255).astype(np.uint8)


def _no_direction() -> ImageInvalid:
    return ImageInvalid(
        "The embedding is all zeros or contains numbers that are not finite. Embed the image again."
    )
