"""Backbones as people use them, at full size, with random weights."""

from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from prompt_serve.bundle import open_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.export.build import export_bundle
from prompt_serve.export.graphs import image_graph
from prompt_serve.export.parity import compare_images, open_session, run
from prompt_serve.export.prompted_parity import every_kind, features_with
from prompt_serve.export.quiet import quiet_libraries
from prompt_serve.export.samples import random_pixels
from prompt_serve.training.clip.backbone import EMBEDDED, load_backbone

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_vit_b_16_becomes_a_bundle(tmp_path: Path) -> None:
    with quiet_libraries():
        backbone = load_backbone("ViT-B-16/random")

    manifest = export_bundle(backbone, tmp_path / "bundle")

    assert max(manifest.parity.values()) <= 1e-5
    assert manifest.backbone.text_width == manifest.backbone.embed_dim == 512
    assert open_bundle(tmp_path / "bundle").image_encoder.stat().st_size == pytest.approx(
        345e6, rel=0.02
    )


@pytest.mark.long
def test_a_thousand_mixes_of_prompts_of_the_image_tower(tmp_path: Path) -> None:
    with quiet_libraries():
        backbone = load_backbone("ViT-B-16/random")
    export_bundle(backbone, tmp_path / "bundle")
    prompted = Encoders.open(
        open_bundle(tmp_path / "bundle"), cuda_device=None, threads=available_cores()
    ).prompted
    rng = np.random.default_rng(0)
    tower = backbone.image_tower
    kinds = [kind for _ in range(3) for kind in every_kind(tower.layers, tower.width, rng)]
    pixels = random_pixels(backbone.preprocessing, count=4)
    expected = np.stack([features_with(backbone, pixels, kind) for kind in kinds])
    rows = [prompted.lay_out(kind) for kind in kinds]

    for _ in range(1000):
        size = rng.integers(2, 7)
        kind, image = rng.integers(0, len(kinds), size), rng.integers(0, len(pixels), size)
        features = prompted.encode(pixels[image], [rows[index] for index in kind])

        # Logits are features times 100.
        assert np.abs(features - expected[kind, image]).max() < 1e-6


# Their text towers are ViT-B/16's; only the image towers need a check of their own.
@pytest.mark.long
@pytest.mark.parametrize("spec", ["ViT-B-32/random", "RN50/random"])
def test_other_image_towers_compute_the_same(spec: str, tmp_path: Path) -> None:
    with quiet_libraries():
        backbone = load_backbone(spec)
    onnx.save(image_graph(backbone), tmp_path / "image.onnx")

    encode = partial(run, open_session(tmp_path / "image.onnx"))

    for difference in compare_images(backbone, encode, "fp32"):
        assert difference.passed, difference


def test_a_checkpoint_on_disk_is_the_same_backbone(tmp_path: Path) -> None:
    backbone = load_backbone("ViT-B-32/random")
    path = tmp_path / "weights.pt"
    torch.save(backbone.clip.state_dict(), path)
    loaded, of_tag = load_backbone(f"ViT-B-32@{path}"), load_backbone(f"ViT-B-32/openai@{path}")

    assert loaded.id == "ViT-B-32@weights.pt"
    assert loaded.ref.fingerprint == backbone.ref.fingerprint
    assert of_tag.former_fingerprint == of_tag.weights_fingerprint == backbone.ref.fingerprint
    assert of_tag.ref.fingerprint != backbone.ref.fingerprint
    pixels = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    assert (of_tag.encode_images(pixels) - loaded.encode_images(pixels)).abs().max() > 1e-4


@pytest.mark.skipif(
    not (resources.files("prompt_serve") / "assets" / EMBEDDED / "config.json").is_file(),
    reason="the embedded backbone is not in this checkout",
)
@pytest.mark.long
def test_the_embedded_backbone_is_proven_on_real_images(tmp_path: Path) -> None:
    backbone = load_backbone(EMBEDDED)

    manifest = export_bundle(backbone, tmp_path / "bundle")

    assert manifest.parity["image_real"] <= 1e-5
    assert max(manifest.parity.values()) <= 1e-5
