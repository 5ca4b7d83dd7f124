"""Which engine runs the image encoder, and why."""

import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.bundle import Bundle, open_bundle, shipped_bundle
from prompt_serve.engines import choice, openvino_images
from prompt_serve.engines.choice import check_engine, choose_engine, largest_difference, measure
from prompt_serve.engines.onnx_images import OnnxImages
from prompt_serve.engines.openvino_images import OpenVinoImages
from prompt_serve.errors import DependencyMissing, ProviderUnavailable
from prompt_serve.types import EngineName, FloatArray, PixelArray, Precision

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="needs pip install 'prompt-serve[openvino]'"
)


class Paced:
    """An engine that returns the features of another after a pause."""

    def __init__(self, engine: OnnxImages, name: EngineName, pause_s: float) -> None:
        self.name, self.runtime, self.provider = name, "paced", "paced"
        self.precision, self.placement = engine.precision, engine.placement
        self.batch_sizes, self.prompted = engine.batch_sizes, engine.prompted
        self._engine, self._pause_s = engine, pause_s

    def encode(self, pixels: PixelArray) -> FloatArray:
        time.sleep(self._pause_s)
        return self._engine.encode(pixels)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(shipped_bundle("embedded-vit"), verify=False)


def in_precision(bundle: Bundle, precision: Precision) -> Bundle:
    manifest = bundle.manifest.model_copy(update={"precision": precision})
    return replace(bundle, manifest=manifest)


def choose(bundle: Bundle, name: EngineName | None) -> choice.Chosen:
    return choose_engine(bundle, name, cuda_device=None, threads=1, max_batch=2)


def test_without_another_engine_nothing_is_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_images, "is_installed", lambda: False)

    chosen = choose(bundle, None)

    assert chosen.engine.name == "onnxruntime"
    assert chosen.images_per_s == {}
    assert "No other engine" in chosen.reason


@needs_openvino
@pytest.mark.parametrize(("factor", "expected"), [(0.0, "openvino"), (1e6, "onnxruntime")])
def test_another_engine_must_be_faster_by_more_than_noise(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, factor: float, expected: str
) -> None:
    monkeypatch.setattr(choice, "FASTER", factor)

    chosen = choose(bundle, None)

    assert chosen.engine.name == expected
    assert chosen.images_per_s.keys() == {"onnxruntime", "openvino"}
    for name, rate in chosen.images_per_s.items():
        assert f"{name} {rate:.1f}" in chosen.reason
    assert "in fp32" in chosen.reason


@needs_openvino
def test_an_engine_with_other_features_is_ruled_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "FASTER", 0.0)
    monkeypatch.setattr(choice, "AGREEMENT", {"fp32": 0.0})

    chosen = choose(bundle, None)

    assert chosen.engine.name == "onnxruntime"
    assert "features differ by" in chosen.reason
    assert chosen.images_per_s == {}


@needs_openvino
def test_an_int8_bundle_without_its_graph_stays_with_onnx_runtime(bundle: Bundle) -> None:
    int8 = in_precision(bundle, "int8")

    chosen = choose(int8, None)

    assert chosen.engine.name == "onnxruntime"
    assert "openvino-int8" in chosen.reason
    with pytest.raises(ProviderUnavailable, match="no graph for it: pip install"):
        choose(int8, "openvino")


@pytest.mark.parametrize(
    ("name", "precision", "cuda", "way_out"),
    [
        ("tensorrt", "fp32", None, "PROMPT_SERVE_DEVICE=cuda"),
        ("openvino", "fp32", 0, "PROMPT_SERVE_DEVICE=cpu"),
        ("onnxruntime", "bf16", None, "PROMPT_SERVE_ENGINE=auto"),
        (None, "bf16", 0, "--precision fp32"),
        ("tensorrt", "bf16", 0, "--precision fp32"),
    ],
)
def test_what_does_not_fit_names_the_way_out(
    bundle: Bundle, name: EngineName | None, precision: Precision, cuda: int | None, way_out: str
) -> None:
    with pytest.raises(ProviderUnavailable, match=way_out):
        check_engine(in_precision(bundle, precision), name, cuda_device=cuda)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("openvino", "fp32"), ("openvino", "int8"), (None, "bf16"), ("openvino", "bf16")],
)
def test_openvino_that_is_missing_says_how_to_install_it(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    name: EngineName | None,
    precision: Precision,
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(DependencyMissing, match=r"pip install 'prompt-serve\[openvino\]'"):
        check_engine(in_precision(bundle, precision), name, cuda_device=None)


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="TensorRT may well run")
def test_tensorrt_that_cannot_run_is_no_quiet_cuda(bundle: Bundle) -> None:
    with pytest.raises(ProviderUnavailable, match=r"TensorRT was requested.*=onnxruntime"):
        choose_engine(bundle, "tensorrt", cuda_device=0, threads=1, max_batch=1)


def test_rates_are_measured_in_turns_and_tell_slow_from_fast(bundle: Bundle) -> None:
    engine = OnnxImages(bundle, threads=1)
    side = bundle.manifest.preprocessing.image_size
    fast, slow = Paced(engine, "onnxruntime", 0.0), Paced(engine, "openvino", 0.2)

    rates = measure([fast, slow], np.zeros((2, side, side, 3), dtype=np.uint8), seconds=0.0)

    assert rates["openvino"] <= 2 / 0.2
    assert rates["onnxruntime"] > rates["openvino"]


def test_features_that_are_not_numbers_agree_with_none() -> None:
    good, bad = np.ones((2, 3), dtype=np.float32), np.full((2, 3), np.nan, dtype=np.float32)

    assert largest_difference(good, good) == 0.0
    assert not largest_difference(good, bad) <= 1.0


@needs_openvino
@pytest.mark.parametrize("name", ["embedded", "embedded-vit"])
def test_openvino_computes_what_onnx_runtime_computes(name: str, rng: np.random.Generator) -> None:
    bundle = open_bundle(shipped_bundle(name), verify=False)
    onnx, openvino = OnnxImages(bundle, threads=1), OpenVinoImages(bundle, threads=1)
    side = bundle.manifest.preprocessing.image_size

    for count in (1, 3, 2):  # sizes change from batch to batch
        pixels = rng.integers(0, 256, size=(count, side, side, 3), dtype=np.uint8)
        features = openvino.encode(pixels)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, onnx.encode(pixels), atol=1e-5)
    assert set(openvino.placement) == {"CPU f32"}
    assert set(onnx.placement) == {"CPUExecutionProvider"}
    assert (openvino.prompted is None) == (onnx.prompted is None)
