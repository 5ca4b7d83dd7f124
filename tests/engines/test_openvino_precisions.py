"""bf16 and int8 bundles in OpenVINO: exported, measured, and run in their own precision."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prompt_serve.bundle import Bundle, open_bundle
from prompt_serve.engines.choice import choose_engine
from prompt_serve.engines.encoders import Encoders
from prompt_serve.engines.openvino_images import OpenVinoImages
from prompt_serve.errors import DatasetInvalid, ExportParityFailed, ProviderUnavailable
from prompt_serve.export import parity
from prompt_serve.export.build import export_bundle
from prompt_serve.export.prompted_parity import every_kind
from prompt_serve.export.samples import (
    CALIBRATION_IMAGES,
    calibration_pixels,
    drawn_pixels,
    random_pixels,
    sample_pixels,
)
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.types import FloatArray, PixelArray
from tests.ready_graphs import ready_graphs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("openvino") is None or find_spec("nncf") is None,
        reason="needs pip install 'prompt-serve[openvino-int8]'",
    ),
    # Of NNCF and what it imports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def int8(
    tiny_backbone: Backbone,
    tiny_bundle: Path,
    photos: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    folder = tmp_path_factory.mktemp("openvino") / "int8"
    with ready_graphs(tiny_bundle):
        export_bundle(tiny_backbone, folder, precision="int8", openvino=True, calibrate=photos)
    return open_bundle(folder)


def has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_int8_is_measured_and_runs_in_int8(int8: Bundle, tiny_backbone: Backbone) -> None:
    engine = OpenVinoImages(int8, threads=1)
    pixels = random_pixels(int8.manifest.preprocessing, count=9)
    expected = tiny_backbone.encode_images(torch.from_numpy(pixels)).numpy()

    assert (engine.encode(pixels) * expected).sum(axis=1).min() > 0.99
    assert set(engine.placement) & {"CPU i8", "CPU u8"}
    measured = int8.manifest.parity
    assert measured["openvino_image_cosine"] <= 0.01
    assert measured["openvino_image_disagreement"] <= parity.DISAGREEMENT_LIMIT
    assert "image_cosine" in measured  # ONNX Runtime's own int8


def test_image_prompts_run_beside_an_int8_graph(int8: Bundle) -> None:
    size = int8.manifest.image_tower
    assert size is not None
    here = Encoders.open(int8, cuda_device=None, threads=1, engine="openvino", max_batch=4)
    there = Encoders.open(int8, cuda_device=None, threads=1, engine="onnxruntime", max_batch=4)
    pixels = random_pixels(int8.manifest.preprocessing, count=3)
    for kind in [*every_kind(size.layers, size.width, np.random.default_rng(0))][:5]:
        rows = [here.images.lay_out(kind), None, here.images.lay_out(kind)]
        cosine = (here.encode_pixels(pixels, rows) * there.encode_pixels(pixels, rows)).sum(axis=1)
        assert cosine.min() > 0.99


def test_bf16_runs_in_bf16_or_says_that_it_cannot(
    tiny_backbone: Backbone, tiny_bundle: Path, tmp_path: Path
) -> None:
    if not has_bf16():
        with (
            ready_graphs(tiny_bundle),
            pytest.raises(ProviderUnavailable, match="no bf16: export with --precision fp32"),
        ):
            export_bundle(tiny_backbone, tmp_path / "bundle", precision="bf16")
        return
    with ready_graphs(tiny_bundle):
        export_bundle(tiny_backbone, tmp_path / "bundle", precision="bf16")
    bundle = open_bundle(tmp_path / "bundle")
    pixels = random_pixels(bundle.manifest.preprocessing, count=5)
    expected = tiny_backbone.encode_images(torch.from_numpy(pixels)).numpy()

    chosen = choose_engine(bundle, None, cuda_device=None, threads=1, max_batch=4)

    assert chosen.engine.name == "openvino"
    assert set(chosen.engine.placement) == {"CPU bf16"}
    assert (chosen.engine.encode(pixels) * expected).sum(axis=1).min() > 0.999
    assert bundle.manifest.parity["openvino_image_cosine"] < 1e-3
    assert bundle.manifest.parity["image_random"] <= parity.FP32_LIMIT  # the stored graph


@pytest.mark.parametrize("error", ["shifted", "swapped", "one image", "not finite", "constant"])
def test_features_that_openvino_computes_differently_stop_the_export(
    int8: Bundle, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    encode = OpenVinoImages.encode

    def wrong(engine: OpenVinoImages, pixels: PixelArray) -> FloatArray:
        features = encode(engine, pixels)
        if error == "shifted":
            features = np.roll(features, 1, axis=1)
        elif error == "swapped":
            features = features[::-1]
        elif error == "one image":
            features[0] = -features[0]
        elif error == "not finite":
            features[-1, -1] = np.nan
        else:
            features[:] = features[0]
        return features

    monkeypatch.setattr(OpenVinoImages, "encode", wrong)
    with pytest.raises(ExportParityFailed, match=r"openvino_image_\w+ is .*--no-openvino"):
        parity.check_openvino(tiny_backbone, OpenVinoImages(int8, threads=1), lambda line: None)


def test_calibration_takes_the_users_images_and_the_shipped_ones(
    tiny_backbone: Backbone, photos: Path, tmp_path: Path
) -> None:
    preprocessing = tiny_backbone.preprocessing

    shipped = calibration_pixels(preprocessing, None)
    assert len(shipped) == CALIBRATION_IMAGES
    own = calibration_pixels(preprocessing, photos)
    assert len(own) == 6 + CALIBRATION_IMAGES
    np.testing.assert_array_equal(own[6:], shipped)
    with pytest.raises(DatasetInvalid, match="no images in"):
        calibration_pixels(preprocessing, tmp_path)


def test_no_calibration_image_is_one_of_the_parity_checks(tiny_backbone: Backbone) -> None:
    preprocessing = tiny_backbone.preprocessing
    checked = [
        *sample_pixels(preprocessing, count=5),
        *drawn_pixels(preprocessing, classes=20, count=8)[0],
    ]

    calibrated = {one.tobytes() for one in calibration_pixels(preprocessing, None)}

    assert not calibrated & {one.tobytes() for one in checked}
