"""Arrays as bodies: files of numpy and safetensors are read, everything else is rejected."""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from prompt_serve.errors import ImageInvalid, RequestInvalid
from prompt_serve.service.http.tensor_bodies import (
    NPY,
    SAFETENSORS,
    embeddings_from_array,
    embeddings_from_lists,
    npy_bytes,
    pixels_from_array,
    read_tensor,
    safetensors_bytes,
)

Write = Callable[[Any], bytes]


def as_npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def as_safetensors(array: Any) -> bytes:
    return save({"anything": np.ascontiguousarray(array)})


@pytest.mark.parametrize(("kind", "write"), [(NPY, as_npy), (SAFETENSORS, as_safetensors)])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_arrays_come_back_as_they_were(
    rng: np.random.Generator, kind: str, write: Write, dtype: str
) -> None:
    array = rng.integers(0, 200, (3, 4, 5)).astype(dtype)

    read = read_tensor(write(array), kind).array

    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_npy_files_of_other_layouts_are_read(rng: np.random.Generator) -> None:
    array = rng.standard_normal((3, 4)).astype(np.float32)

    for other in (np.asfortranarray(array), array.astype(">f4"), array[:0]):
        np.testing.assert_array_equal(read_tensor(as_npy(other), NPY).array, other)


def test_safetensors_say_which_backbone_they_are_of() -> None:
    metadata = {"fingerprint": "ab" * 32, "failed": [1, 2]}

    read = read_tensor(safetensors_bytes("x", np.zeros((2, 3), np.float32), metadata), SAFETENSORS)

    assert read.metadata == {"fingerprint": "ab" * 32, "failed": "[1, 2]"}
    assert read_tensor(npy_bytes(np.ones((2, 3), np.float32)), NPY).array.sum() == 6


def test_nothing_is_unpickled_and_no_header_is_believed() -> None:
    good = as_npy(np.zeros((2, 3), np.float32))
    header = b"\x93NUMPY\x01\x00" + (200).to_bytes(2, "little")
    refused = [
        b"", b"\x93NUMPY", good[:50], good[:-1], good + b"x", b"hello" * 100,
        as_npy(np.array([{"a": 1}], dtype=object)),
        pickle.dumps([1, 2, 3]),
        header + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}".ljust(200) + b"x" * 8,
        header + b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}".ljust(200) + bytes(8),
        header + (b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % 10**15).ljust(200),
        header + b"__import__('os').system('true')".ljust(200),
        header + (b"(" * 150).ljust(200),
        as_npy(np.zeros(3, dtype=[("a", "f4"), ("b", "i4")])),
        as_npy(np.zeros(3, dtype=np.complex64)), as_npy(np.zeros(3, dtype=bool)),
        as_npy(np.zeros(3, dtype=np.int64)), as_npy(np.array(["text"])),
    ]  # fmt: skip
    for data in refused:
        with pytest.raises(RequestInvalid, match=r"npy|tensor"):
            read_tensor(data, NPY)


def test_safetensors_that_are_none_are_refused() -> None:
    good = as_safetensors(np.zeros((2, 3), np.float32))
    two = save({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)})
    for data in (b"", good[:-1], good[:12], b"\xff" * 100, two, save({}), good + b"x"):
        with pytest.raises(RequestInvalid, match="safetensors"):
            read_tensor(data, SAFETENSORS)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_pixels_as_floats_are_the_same_pixels(dtype: str) -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3 * 3).reshape(3, 16, 16, 3)

    for array in (pixels, (pixels / 255).astype(dtype)):
        back = pixels_from_array(array, 16)
        assert len(back) == 3
        np.testing.assert_array_equal(np.stack(back), pixels)
    np.testing.assert_array_equal(pixels_from_array(pixels[0], 16)[0], pixels[0])


def test_pixels_from_array_another_shape_or_scale_are_refused() -> None:
    good = np.zeros((2, 16, 16, 3), np.float32)
    shapes = [good[:, :8], good[..., :1], good.transpose(0, 3, 1, 2), good[0, 0], good[None]]
    for array in shapes:
        with pytest.raises(RequestInvalid, match=r"expected \(N, 16, 16, 3\)"):
            pixels_from_array(array, 16)
    for bad in (255.0, -1.0, np.nan, np.inf):
        with pytest.raises(RequestInvalid, match=r"expected floats in 0\.\.1"):
            pixels_from_array(np.full_like(good, bad), 16)


def test_embeddings_of_any_length_point_where_they_did(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((4, 8))
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    for array in (rows, 1e-30 * rows, 1e30 * rows, rows.astype(np.float16)):
        found = np.stack([np.asarray(row) for row in embeddings_from_array(array, 8)])
        assert np.abs(found - expected).max() <= (1e-3 if array.dtype == np.float16 else 1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    of_lists = embeddings_from_lists(rows.tolist(), 8)
    assert np.abs(np.stack([np.asarray(row) for row in of_lists]) - expected).max() <= 1e-6


def test_embeddings_without_a_direction_fail_alone(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((5, 8)).astype(np.float32)
    rows[1], rows[2, 3], rows[3, 0] = 0, np.nan, np.inf

    found = embeddings_from_array(rows, 8)

    assert [isinstance(row, ImageInvalid) for row in found] == [False, True, True, True, False]


def test_embeddings_of_another_width_or_kind_are_refused() -> None:
    for array in (np.zeros((2, 7)), np.zeros((2, 2, 8)), np.zeros((2, 8), np.uint8)):
        with pytest.raises(RequestInvalid, match=r"expected floats \(N, 8\)"):
            embeddings_from_array(array, 8)
    with pytest.raises(RequestInvalid, match="Embedding 1 has 7 numbers"):
        embeddings_from_lists([[0.1] * 8, [0.1] * 7], 8)
