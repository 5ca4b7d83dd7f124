"""Folders of open_clip and transformers are backbones; others say what they are."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.tokenizer import default_bpe
from safetensors.torch import load_file, save_file

from prompt_serve.errors import BackboneError, BackboneUnavailable, BackboneUnsupported
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from tests.training.clip.transformers_clip import (
    ACTIVATIONS,
    FEATURES,
    TOKENS,
    pixels,
    write_transformers_clip,
)

# Sums of a few dozen float32 terms, in another order than transformers'.
ROUNDING = 2e-6


def write_open_clip(folder: Path, tiny_folder: Path, weights: str, **model_cfg: Any) -> Path:
    """The tiny backbone as ``open_clip.push_to_hf_hub`` writes it."""
    config = json.loads((tiny_folder / "config.json").read_text())
    folder.mkdir(parents=True)
    preprocess = {"size": [32, 32], "mode": "RGB", "fill_color": 0, **config["preprocess_cfg"]}
    document = {
        "model_cfg": config["model_cfg"] | model_cfg,
        "preprocess_cfg": preprocess | {"interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    state = load_file(tiny_folder / "model.safetensors")
    if weights.endswith(".safetensors"):
        save_file(state, folder / weights)
    else:
        torch.save(state, folder / weights)
    return folder


@pytest.mark.parametrize(
    ("weights", "path"),
    [
        ("open_clip_model.safetensors", "absolute"),
        ("open_clip_pytorch_model.safetensors", "relative"),
        ("open_clip_pytorch_model.bin", "dot"),
        ("model.safetensors", "slash"),
        ("pytorch_model.bin", "absolute"),
    ],
)
def test_a_folder_of_open_clip_is_the_same_backbone(
    weights: str, path: str, tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = write_open_clip(tmp_path / "models" / "tiny", tiny_folder, weights)
    monkeypatch.chdir(folder if path == "dot" else tmp_path)
    spec = {"absolute": str(folder), "relative": "models/tiny", "dot": ".", "slash": "models/tiny/"}

    found = load_backbone(spec[path])

    assert found.ref == tiny_backbone.ref
    assert found.preprocessing == tiny_backbone.preprocessing


def test_a_config_of_open_clip_may_have_the_general_name(
    tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = write_open_clip(tmp_path / "tiny", tiny_folder, "model.safetensors")
    (folder / "open_clip_config.json").rename(folder / "config.json")
    assert load_backbone(str(folder)).ref == tiny_backbone.ref


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_folder_of_transformers_gives_the_features_of_transformers(
    activation: str, tmp_path: Path
) -> None:
    backbone = load_backbone(str(write_transformers_clip(tmp_path / "clip", activation)))
    expected = json.loads(FEATURES.read_text())[activation]
    with torch.inference_mode():
        image = backbone.clip.encode_image(pixels(), normalize=True).numpy()
        tokens = torch.zeros(2, 77, dtype=torch.long)
        tokens[:, :4] = torch.tensor(TOKENS)
        text = backbone.clip.encode_text(tokens, normalize=True).numpy()
    assert np.abs(image - expected["image"]).max() < ROUNDING
    assert np.abs(text - expected["text"]).max() < ROUNDING
    assert backbone.ref.embed_dim == 12
    assert backbone.id == "clip"


def test_activations_of_transformers_are_two_backbones(tmp_path: Path) -> None:
    one, two = (load_backbone(str(write_transformers_clip(tmp_path / a, a))) for a in ACTIVATIONS)
    assert one.weights_fingerprint == two.weights_fingerprint
    assert one.ref.fingerprint != two.ref.fingerprint


def without_defaults(config: dict[str, Any]) -> None:
    config["text_config_dict"] = config.pop("text_config")


def other_kind(config: dict[str, Any]) -> None:
    config["model_type"] = "siglip"


def two_activations(config: dict[str, Any]) -> None:
    config["vision_config"]["hidden_act"] = "gelu"


def unknown_activation(config: dict[str, Any]) -> None:
    config["text_config"]["hidden_act"] = config["vision_config"]["hidden_act"] = "relu"


def more_layers(config: dict[str, Any]) -> None:
    config["text_config"]["num_hidden_layers"] = 3


def other_width(config: dict[str, Any]) -> None:
    config["projection_dim"] = 16


def edited(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_config_of_old_files_is_read(tmp_path: Path) -> None:
    folder = write_transformers_clip(tmp_path / "clip", "quick_gelu")
    expected = load_backbone(str(folder)).ref
    assert load_backbone(str(edited(folder, without_defaults))).ref == expected


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (other_kind, "transformers folder of a 'siglip' model, which is not a CLIP"),
        (two_activations, "the activations gelu and quick_gelu"),
        (unknown_activation, "the activations relu"),
        (more_layers, "do not fit .*config.json: tensors 12 missing"),
        (other_width, "2 of another shape"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    edit: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    folder = edited(write_transformers_clip(tmp_path / "clip", "quick_gelu"), edit)
    with pytest.raises(BackboneError, match=told):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        ({"size": 32, "crop_size": 32, "resample": 3}, ("shortest", "bicubic")),
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
         ("shortest", "bicubic")),
        ({"size": {"height": 32, "width": 32}, "resample": 2}, ("squash", "bilinear")),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, ("squash", "bicubic")),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, ("shortest", "bicubic")),
        ({"size": 40, "crop_size": 32}, None),
        ({"size": 32, "resample": 0}, None),
        ({"size": 32, "do_normalize": False}, None),
        ({"size": {"longest_edge": 32}}, None),
        ({"size": 32, "crop_size": 32, "do_center_crop": False}, None),
    ],
)  # fmt: skip
def test_the_preprocessing_of_transformers_is_read(
    preprocessor: dict[str, Any], expected: tuple[str, str] | None, tmp_path: Path
) -> None:
    folder = write_transformers_clip(tmp_path / "clip", "gelu")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if expected is None:
        with pytest.raises(BackboneUnsupported, match="a preprocessing that is not supported"):
            load_backbone(str(folder))
        return
    found = load_backbone(str(folder)).preprocessing
    assert (found.resize_mode, found.interpolation, found.image_size) == (*expected, 32)
    if "image_mean" in preprocessor:
        assert found.mean == found.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("same", [True, False])
def test_the_merges_of_transformers_must_be_clips(same: bool, tmp_path: Path) -> None:
    folder = write_transformers_clip(tmp_path / "clip", "gelu")
    merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    lines = ["#version: 0.2", *merges[1 : 49_152 - 256 - 1]]
    (folder / "merges.txt").write_text("\n".join(lines if same else lines[:-1]) + "\n")
    if same:
        assert load_backbone(str(folder)).tokenizer.encode("a cat") == [320, 2368]
    else:
        with pytest.raises(BackboneUnsupported, match=r"merges\.txt is not CLIP's"):
            load_backbone(str(folder))


def empty(folder: Path, tiny: Path, bundle: Path) -> None:
    folder.mkdir()


def bundle_alone(folder: Path, tiny: Path, bundle: Path) -> None:
    shutil.copytree(bundle, folder)


def broken_json(folder: Path, tiny: Path, bundle: Path) -> None:
    write_open_clip(folder, tiny, "model.safetensors")
    (folder / "open_clip_config.json").write_text("{")


def no_weights(folder: Path, tiny: Path, bundle: Path) -> None:
    write_open_clip(folder, tiny, "weights.safetensors")


def transformers_without_weights(folder: Path, tiny: Path, bundle: Path) -> None:
    write_transformers_clip(folder, "gelu")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def pointer(folder: Path, tiny: Path, bundle: Path) -> None:
    write_open_clip(folder, tiny, "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")


def cut_weights(folder: Path, tiny: Path, bundle: Path) -> None:
    shutil.copytree(tiny, folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (empty, "is incomplete: there is no config.json"),
        (bundle_alone, "is an exported bundle.*exported from: tiny"),
        (broken_json, "open_clip_config.json is not JSON"),
        (no_weights, "has no weights; expected open_clip_model.safetensors or"),
        (transformers_without_weights, "has no weights; expected model.safetensors or"),
        (pointer, "is a Git LFS pointer"),
        (cut_weights, "is damaged or cut short"),
    ],
)
def test_folders_without_a_backbone_say_what_is_there(
    write: Callable[[Path, Path, Path], None], told: str, tiny_folder: Path, tiny_bundle: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    write(tmp_path / "folder", tiny_folder, tiny_bundle)
    with pytest.raises(BackboneUnavailable, match=told) as caught:
        load_backbone(str(tmp_path / "folder"))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"custom_text": True}, "a text tower of its own kind"),
        ({"multimodal_cfg": {"width": 32}}, "is a CoCa"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "transformers .roberta-base"),
        ({"text_cfg": {"hf_tokenizer_name": "bert"}}, "a tokenizer of transformers .bert"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "whitespace"}}}, "changes CLIP's tokenizer"),
    ],
)
def test_towers_that_are_not_taken_are_refused_before_weights_are_read(
    change: dict[str, Any], told: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = write_open_clip(tmp_path / "model", tiny_folder, "model.safetensors", **change)
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(BackboneUnsupported, match=told):
        load_backbone(str(folder))
