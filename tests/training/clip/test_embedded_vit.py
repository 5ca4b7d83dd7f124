"""The shipped small ViT: the embedded backbone's text tower, and an image tower that agrees."""

import csv
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer
from PIL import Image
from safetensors.torch import load_file, save_file

from prompt_serve.errors import BackboneUnavailable
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.training.clip.backbone import Backbone, load_backbone

ASSETS = Path(str(resources.files("prompt_serve"))) / "assets"
FOLDER = ASSETS / "embedded-vit"
SAMPLE = ASSETS / "emoji"
FINGERPRINT = "b1e3ed0c62355e23e6023224953835593d9f1bf6dca8e161e65b2b00dca56152"

pytestmark = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").exists(), reason="the small ViT is not in this checkout"
)


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return load_backbone("embedded-vit")


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return load_backbone("embedded")


def test_it_is_a_small_vit(vit: Backbone) -> None:
    assert isinstance(vit.clip.visual, VisionTransformer)
    assert len(vit.clip.visual.transformer.resblocks) == 6
    assert vit.preprocessing.image_size == 64
    assert vit.preprocessing.interpolation == "bicubic"
    assert vit.preprocessing.resize_mode == "shortest"


def test_the_weights_file_holds_the_image_tower_alone_in_fp16() -> None:
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size <= 11_000_000
    weights = load_file(path)
    assert all(name.startswith("visual.") for name in weights)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_text_features_are_those_of_the_embedded_backbone(
    vit: Backbone, embedded: Backbone
) -> None:
    names = ["goat", "a team's own label", "naïve café"]
    assert vit.id == "embedded-vit"
    assert vit.logit_scale == embedded.logit_scale
    assert torch.equal(_class_features(vit, names), _class_features(embedded, names))


def test_the_fingerprint_is_its_own(vit: Backbone, embedded: Backbone) -> None:
    """Prompts hold it: new weights are a new backbone, so a change here must be meant."""
    assert vit.ref.fingerprint == FINGERPRINT
    assert vit.ref.fingerprint != embedded.ref.fingerprint
    assert vit.ref.embed_dim == embedded.ref.embed_dim


def test_zero_shot_on_drawings_is_far_above_chance(vit: Backbone) -> None:
    with (SAMPLE / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"][::2]
    names = sorted({row["label"] for row in rows})
    pixels = np.stack(
        [pixels_from_bytes((SAMPLE / row["path"]).read_bytes(), vit.preprocessing) for row in rows]
    )
    images = vit.encode_images(torch.from_numpy(pixels))
    right = images @ _class_features(vit, names).T
    labels = torch.tensor([names.index(row["label"]) for row in rows])
    assert (
        float((right.argmax(-1) == labels).float().mean()) > 0.25
    )  # reached: 0.35; chance: 1 of 12


def test_it_places_drawings_near_the_embedded_backbone(vit: Backbone, embedded: Backbone) -> None:
    paths = sorted((SAMPLE / "train").glob("*/noto__*.png"))[::8]
    seen = [_features(backbone, paths) for backbone in (vit, embedded)]
    assert float((seen[0] * seen[1]).sum(-1).mean()) > 0.4  # reached on all of noto: 0.54


def test_a_larger_drawing_is_seen_much_like_a_small_one(vit: Backbone, tmp_path: Path) -> None:
    small = sorted((SAMPLE / "train").glob("*/twemoji__*.png"))[::10]
    larger = []
    for path in small:
        image = Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS)
        image.save(tmp_path / path.name)
        larger.append(tmp_path / path.name)
    cosine = (_features(vit, small) * _features(vit, larger)).sum(-1)
    assert float(cosine.min()) > 0.9


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("folder", ["embedded", "embedded-vit"])
def test_a_missing_file_is_named(copies: Path, folder: str, missing: str) -> None:
    (copies / folder / missing).unlink()
    with pytest.raises(BackboneUnavailable, match=f"{folder} is incomplete: .*no {missing}"):
        load_backbone(str(copies / "embedded-vit"))


def test_weights_that_do_not_fit_are_refused(copies: Path) -> None:
    path = copies / "embedded-vit" / "model.safetensors"
    weights = load_file(path)
    weights.pop("visual.proj")
    save_file(weights, path)
    with pytest.raises(
        BackboneUnavailable, match=r"do not fit .*config.json: tensors 1 missing .visual.proj"
    ):
        load_backbone(str(copies / "embedded-vit"))


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Both folders, to be damaged."""
    for name in ("embedded", "embedded-vit"):
        shutil.copytree(ASSETS / name, tmp_path / name)
    return tmp_path


def _class_features(backbone: Backbone, names: list[str]) -> torch.Tensor:
    """(C, E) of "a photo of a {}.", by open_clip's own text tower."""
    tokenizer, rows = backbone.tokenizer, []
    for name in names:
        ids = [tokenizer.start_id, *tokenizer.encode(f"a photo of a {name}."), tokenizer.end_id]
        rows.append(ids + [0] * (backbone.clip.context_length - len(ids)))
    with torch.no_grad():
        features: torch.Tensor = backbone.clip.encode_text(torch.tensor(rows), normalize=True)
    return features


def _features(backbone: Backbone, paths: list[Path]) -> torch.Tensor:
    pixels = [pixels_from_bytes(path.read_bytes(), backbone.preprocessing) for path in paths]
    return backbone.encode_images(torch.from_numpy(np.stack(pixels)))
