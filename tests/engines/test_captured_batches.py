"""Batches from buffers that stay where they are, on the CPU; on CUDA, their graphs are captured."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.engines.captured_batches import CapturedBatches
from prompt_serve.engines.onnx_images import OnnxImages
from prompt_serve.engines.onnx_session import CPU, open_session
from prompt_serve.export.samples import random_pixels
from prompt_serve.types import FloatArray, PixelArray


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> ort.InferenceSession:
    return open_session(bundle.image_encoder, CPU, threads=1)


@pytest.fixture(scope="module")
def pixels(bundle: Bundle) -> PixelArray:
    return random_pixels(bundle.manifest.preprocessing, count=12)


@pytest.fixture(scope="module")
def expected(bundle: Bundle, pixels: PixelArray) -> FloatArray:
    """Return the features by the session's own ``run``, one image at a time."""
    images = OnnxImages(bundle, threads=1)
    return np.concatenate([images.encode(one[np.newaxis]) for one in pixels])


def batches(session: ort.InferenceSession, pixels: PixelArray, *sizes: int) -> CapturedBatches:
    return CapturedBatches(session, sizes, side=pixels.shape[1], device="cpu")


@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 2, 4), (1, 2, 4, 8), (3, 5)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 12])
def test_features_equal_those_of_single_images(
    session: ort.InferenceSession,
    pixels: PixelArray,
    expected: FloatArray,
    sizes: tuple[int, ...],
    count: int,
) -> None:
    encode = batches(session, pixels, *sizes).encode
    np.testing.assert_allclose(encode(pixels[:count]), expected[:count], atol=2e-6)


def test_batches_do_not_see_those_before(
    session: ort.InferenceSession, pixels: PixelArray, expected: FloatArray
) -> None:
    encode = batches(session, pixels, 1, 2, 4, 8).encode
    first = encode(pixels[:7])
    for count in (2, 1, 8, 3, 5):
        np.testing.assert_allclose(encode(pixels[-count:]), expected[-count:], atol=2e-6)
    np.testing.assert_allclose(first, expected[:7], atol=2e-6)  # no view of a reused buffer


def test_threads_get_the_features_of_their_own_images(
    session: ort.InferenceSession, pixels: PixelArray, expected: FloatArray
) -> None:
    captured = batches(session, pixels, 1, 2, 4)
    together = threading.Barrier(4)

    def encode(first: int) -> bool:
        together.wait()
        return all(
            np.allclose(captured.encode(pixels[own]), expected[own], atol=2e-6)
            for own in [slice(first, first + 1 + turn % 3) for turn in range(12)]
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(encode, (0, 3, 6, 9)))
