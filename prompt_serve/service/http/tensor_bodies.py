"""Arrays as bodies: npy and safetensors, in and out. Nothing is unpickled, ever.

An npy file is one array. A safetensors file holds one tensor, whatever its name; its metadata may
say of which backbone embeddings are (``fingerprint``).
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

from prompt_serve.errors import ImageInvalid, PromptServeError, RequestInvalid
from prompt_serve.scoring import unit
from prompt_serve.types import FloatArray, PixelArray

NPY = "application/x-npy"
SAFETENSORS = "application/x-safetensors"
TENSOR_TYPES = (NPY, SAFETENSORS)

_MAX_NPY_HEADER_BYTES = 1_000  # numpy writes 118
_FLOATS = ("float16", "float32", "float64")
# A float16 next to 0 or 1; beyond it, pixels are on another scale.
_PIXEL_SLACK = 1e-3

AnyArray = NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """An array, and what its file says about it."""

    array: AnyArray
    metadata: dict[str, str]


def read_tensor(data: bytes, kind: str) -> Tensor:
    """The array in a body of one of ``TENSOR_TYPES``.

    Raises:
        RequestInvalid: it is no such file, or it holds anything but one array of numbers.
    """
    tensor = _read_npy(data) if kind == NPY else _read_safetensors(data)
    if tensor.array.dtype.name not in (*_FLOATS, "uint8"):
        raise RequestInvalid(
            f"The tensor is of {tensor.array.dtype}; wanted uint8, {', '.join(_FLOATS)}."
        )
    return tensor


def pixels_of(array: AnyArray, image_size: int) -> list[PixelArray]:
    """N preprocessed images of an (N, S, S, 3) or (S, S, 3) array, each (S, S, 3) uint8.

    Floats are pixels divided by 255, as torchvision's ``ToTensor`` gives them; they are taken back
    to the nearest whole number. Pixels from which a mean was taken are refused: they have no one
    way back, and the image graph does that itself.

    Raises:
        RequestInvalid: another shape, or floats that are not in 0..1.
    """
    images = array[np.newaxis] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[1:] != (image_size, image_size, 3):
        hint = " Embeddings are scored by POST /v1/score." if array.ndim <= 2 else ""
        raise RequestInvalid(
            f"The tensor has the shape {array.shape}; wanted (N, {image_size}, {image_size}, 3): "
            f"images that are resized and cropped already, RGB, the channels last.{hint}"
        )
    if images.dtype != np.uint8:
        images = _from_unit_scale(images)
    return list(np.ascontiguousarray(images))


def embeddings_of(array: AnyArray, width: int) -> list[FloatArray | PromptServeError]:
    """The rows of an (N, E) or (E,) array of floats, each scaled to unit length, or its error.

    Any length will do, since a score is a cosine. A row that has none, or numbers that are not
    finite, fails alone.

    Raises:
        RequestInvalid: another shape or width, or whole numbers.
    """
    rows = array[np.newaxis] if array.ndim == 1 else array
    if rows.ndim != 2 or rows.shape[1] != width or rows.dtype.name not in _FLOATS:
        raise RequestInvalid(
            f"The embeddings are {array.dtype} {array.shape}; wanted floats (N, {width}), as "
            f"POST /v1/embed gives them: this backbone's embeddings have {width} numbers."
        )
    # In float64 no float32 overflows when it is squared.
    numbers = rows.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(numbers, axis=1)
    is_good = np.isfinite(lengths) & (lengths > 0)
    numbers[~is_good] = 0.0
    scaled = unit((numbers / np.where(is_good, lengths, 1.0)[:, np.newaxis]).astype(np.float32))
    return [row if good else _no_direction() for row, good in zip(scaled, is_good, strict=True)]


def embeddings_of_lists(
    rows: Sequence[Sequence[float]], width: int
) -> list[FloatArray | PromptServeError]:
    """``embeddings_of`` for lists of numbers, as JSON has them.

    Raises:
        RequestInvalid: a list of another length.
    """
    for index, row in enumerate(rows):
        if len(row) != width:
            raise RequestInvalid(
                f"Embedding {index} has {len(row)} numbers; this backbone's have {width}."
            )
    return embeddings_of(np.asarray(rows, dtype=np.float64).reshape(len(rows), width), width)


def npy_bytes(array: FloatArray) -> bytes:
    """An array as an npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def safetensors_bytes(name: str, array: FloatArray, metadata: Mapping[str, object]) -> bytes:
    """An array as a safetensors file; metadata that is no text is written as JSON."""
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
    # A header is a Python literal; what a crooked one raises depends on where it is crooked.
    except (ValueError, SyntaxError, TokenError, LookupError, TypeError, RecursionError) as error:
        raise RequestInvalid(f"The body is no npy file: {error}") from error
    if dtype.hasobject:
        raise RequestInvalid("The npy file holds Python objects; only numbers are read.")
    start = file.tell()
    wanted = dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(data) - start != wanted or any(side < 0 for side in shape):
        raise RequestInvalid(
            f"The npy file declares {dtype} {shape}, which is {wanted:,} bytes, and has "
            f"{len(data) - start:,}."
        )
    array = np.frombuffer(data, dtype=dtype, offset=start).reshape(
        shape, order="F" if is_fortran else "C"
    )
    return Tensor(array, {})


def _read_safetensors(data: bytes) -> Tensor:
    try:
        tensors = load(data)
    # safetensors knows number formats that numpy does not (KeyError, AttributeError).
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestInvalid(
            f"The body is no safetensors file that can be read: {error}"
        ) from error
    if len(tensors) != 1:
        names = ", ".join(sorted(tensors)[:10]) or "none"
        raise RequestInvalid(
            f"The safetensors file holds {len(tensors)} tensors ({names}); wanted 1."
        )
    (array,) = tensors.values()
    # Checked by ``load``: 8 bytes with the length of the header, then the header in JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return Tensor(array, header.get("__metadata__") or {})


def _from_unit_scale(images: AnyArray) -> PixelArray:
    numbers = images.astype(np.float32)
    lowest, highest = float(numbers.min(initial=0.0)), float(numbers.max(initial=0.0))
    # Written so that NaN, which compares false, is refused.
    if not (lowest >= -_PIXEL_SLACK and highest <= 1 + _PIXEL_SLACK):
        raise RequestInvalid(
            f"The pixels are {images.dtype} from {lowest:.4g} to {highest:.4g}; as floats they lie "
            f"in 0..1. Send uint8, or pixels before mean and deviation were taken out: the service "
            f"does that itself."
        )
    return np.clip(np.rint(numbers * 255), 0, 255).astype(np.uint8)


def _no_direction() -> ImageInvalid:
    return ImageInvalid(
        "The embedding is all zeros, or has numbers that are not finite. Embed the image again."
    )
