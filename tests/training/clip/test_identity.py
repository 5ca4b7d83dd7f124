"""One identity per set of features: it changes with everything that changes a feature."""

import gzip
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.tokenizer import default_bpe
from PIL import Image

from prompt_serve.bundle import SHIPPED, open_bundle, shipped_bundle
from prompt_serve.errors import BackboneUnavailable, BackboneUnsupported
from prompt_serve.preprocess import to_pixels
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.clip.folders import folder_source
from prompt_serve.training.clip.identity import (
    BackboneSettings,
    fingerprint,
    identity,
    settings_of,
)
from prompt_serve.training.clip.open_clip_models import open_clip_source
from prompt_serve.training.clip.source import Source, preprocessing_of
from tests.backbones import write_tiny_backbone
from tests.drawings import draw_image

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "activation": ("model_cfg", {"quick_gelu": True}),
    "text heads": ("text_cfg", {"heads": 4}),
    "no causal mask": ("text_cfg", {"no_causal_mask": True}),
    "text norm": ("text_cfg", {"norm_kwargs": {"eps": 0.5}}),
    "image heads": ("vision_cfg", {"head_width": 16}),
    "image norm": ("vision_cfg", {"norm_kwargs": {"eps": 0.5}}),
    "image pooling": ("vision_cfg", {"pool_type": "avg"}),
    "mean": ("preprocess_cfg", {"mean": [0.4] * 3}),
    "std": ("preprocess_cfg", {"std": [0.3] * 3}),
    "interpolation": ("preprocess_cfg", {"interpolation": "bilinear"}),
    "resize mode": ("preprocess_cfg", {"resize_mode": "squash"}),
}
WITHOUT_EFFECT: dict[str, tuple[str, dict[str, Any]]] = {
    "patch dropout": ("vision_cfg", {"patch_dropout": 0.5}),
    "a default in full": ("text_cfg", {"no_causal_mask": False}),
    "activation in full": ("model_cfg", {"quick_gelu": False}),
    "first logit scale": ("model_cfg", {"init_logit_scale": 1.0}),
    "defaults of preprocessing": ("preprocess_cfg", {"interpolation": "bicubic"}),
}


def changed(folder: Path, tiny_folder: Path, part: str, values: dict[str, Any]) -> Backbone:
    """The tiny backbone with one part of its config changed, and the same weights."""
    return load_backbone(str(changed_folder(folder, tiny_folder, part, values)))


def changed_folder(folder: Path, tiny_folder: Path, part: str, values: dict[str, Any]) -> Path:
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    place = config["model_cfg"] if part in config["model_cfg"] else config
    place[part] |= values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def features(backbone: Backbone, folder: Path) -> np.ndarray:
    """Image features of two strips, and of a text, in one array."""
    pixels = []
    for index, color in enumerate([(250, 20, 90), (10, 120, 60)]):
        with Image.open(draw_image(folder / f"{index}.png", color, index)) as image:
            strip = image.convert("RGB").crop((0, 0, image.width, image.height // 2))
        pixels.append(to_pixels(strip, backbone.preprocessing))
    tokens = [backbone.tokenizer.start_id, *backbone.tokenizer.encode("a red cat")]
    tokens += [backbone.tokenizer.end_id] + [0] * (backbone.ref.context_length - len(tokens) - 1)
    with torch.inference_mode():
        text = backbone.clip.encode_text(torch.tensor([tokens]), normalize=True).numpy()
    return np.concatenate([backbone.encode_pixels(np.stack(pixels)), text])


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_features_changes_the_identity(
    change: str, tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    other = changed(tmp_path / "other", tiny_folder, *CHANGES[change])

    difference = np.abs(features(other, tmp_path) - features(tiny_backbone, tmp_path)).max()

    assert difference > 1e-5  # the change matters, so this test can fail
    assert other.weights_fingerprint == tiny_backbone.weights_fingerprint
    assert other.ref.fingerprint != tiny_backbone.ref.fingerprint


@pytest.mark.parametrize("change", WITHOUT_EFFECT)
def test_what_changes_no_feature_keeps_the_identity(
    change: str, tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    other = changed(tmp_path / "other", tiny_folder, *WITHOUT_EFFECT[change])

    assert (features(other, tmp_path) == features(tiny_backbone, tmp_path)).all()
    assert other.ref.fingerprint == tiny_backbone.ref.fingerprint


def test_all_identities_differ(tiny_folder: Path, tmp_path: Path) -> None:
    found = {
        settings(folder_source(changed_folder(tmp_path / name, tiny_folder, *change))).digest
        for name, change in CHANGES.items()
    }
    assert len(found) == len(CHANGES)


def test_another_tokenizer_is_another_backbone(
    tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "other")
    merges = gzip.decompress(Path(default_bpe()).read_bytes())
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(merges, mtime=7))  # packed otherwise
    assert load_backbone(str(folder)).ref == tiny_backbone.ref

    lines = merges.decode().split("\n")
    lines[1], lines[2] = lines[2], lines[1]
    (folder / "bpe.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    other = load_backbone(str(folder))
    assert other.weights_fingerprint == tiny_backbone.weights_fingerprint
    assert other.ref.fingerprint != tiny_backbone.ref.fingerprint


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_backbones_keep_the_fingerprint_of_their_weights(name: str) -> None:
    backbone = load_backbone(name)
    assert backbone.ref == open_bundle(shipped_bundle(name)).manifest.backbone
    assert backbone.ref.fingerprint == fingerprint(backbone.clip)
    assert backbone.former_fingerprint is None


@pytest.mark.parametrize("part", ["mean", "std", "interpolation", "resize_mode"])
def test_a_copy_of_a_shipped_backbone_with_other_settings_is_another(
    part: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(shipped_bundle("embedded"), tmp_path / "embedded")
    config = json.loads((folder / "config.json").read_text())
    other = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    config["preprocess_cfg"][part] = other.get(part, "squash")
    (folder / "config.json").write_text(json.dumps(config))

    found = load_backbone(str(folder)).ref

    assert found.id == "embedded"
    assert (
        found.fingerprint != open_bundle(shipped_bundle("embedded")).manifest.backbone.fingerprint
    )


PLAIN = ["ViT-B-32", "ViT-L-14", "RN50", "ViT-B-16", "ViT-L-14-336", "RN50x4"]


@pytest.mark.parametrize("model", PLAIN)
def test_plain_models_keep_the_digest_of_their_weights(model: str) -> None:
    assert identity("0" * 64, settings(open_clip_source(f"{model}/random"))) == "0" * 64


@pytest.mark.parametrize("model", PLAIN)
def test_activations_of_one_file_are_told_apart(model: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.touch()
    bare, tag, quick = (
        settings(open_clip_source(f"{label}@{path}"))
        for label in (model, f"{model}/openai", f"{model}-quickgelu")
    )
    assert identity("0" * 64, tag) == identity("0" * 64, quick) != identity("0" * 64, bare)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("ViT-L-14/laion2b_s32b_b82k", {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        ("ViT-B-16/dfn2b", {}),
        ("ViT-H-14-378/dfn5b", {"resize_mode": "squash"}),
        ("ViT-H-14/dfn5b", {"interpolation": "bicubic"}),
        ("ViT-B-32/laion2b_s34b_b79k", {"resize_mode": "shortest"}),
    ],
)
def test_a_file_named_by_its_tag_has_the_tags_settings(
    spec: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    path.touch()
    of_file = open_clip_source(f"{spec}@{path}")
    assert settings(of_file) == settings(open_clip_source(spec))
    assert of_file.id == f"{spec}@weights.pt"
    found = vars(settings(of_file).preprocessing)
    assert {k: found[k] for k in expected} == expected


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("ViT-B-32", ["activation QuickGELU: ViT-B-32/openai, ViT-B-32/laion400m_e31"]),
        ("ViT-B-32-quickgelu", ["activation GELU: ViT-B-32/", "ViT-B-32/laion2b_s34b_b79k"]),
        ("ViT-L-14", ["mean 0.5/0.5/0.5, std 0.5/0.5/0.5: ViT-L-14/laion2b_s32b_b82k"]),
        ("RN50", ["activation QuickGELU: RN50/openai", "RN50/cc12m"]),
        ("ViT-H-14", ["ViT-H-14/dfn5b", "as in ViT-H-14/metaclip_fullcc@{}"]),
        ("ViT-B-16-plus-240", []),
        ("ViT-S-16", []),
        ("ViT-B-32-256", []),
    ],
)
def test_a_bare_file_that_may_be_of_a_tag_with_other_settings_lists_them(
    spec: str, told: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pt"
    path.touch()
    with caplog.at_level(logging.WARNING):
        open_clip_source(f"{spec}@{path}")
    assert bool(caplog.messages) == bool(told)
    for line in told:
        assert line.format(path) in caplog.text


@pytest.mark.parametrize("model", ["ViT-B-32", "RN50", "ViT-L-14", "ViT-B-16", "RN101"])
def test_a_file_named_by_its_tag_is_told_nothing(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "weights.pt").touch()
    open_clip_source(f"{model}/openai@{tmp_path / 'weights.pt'}")
    open_clip_source(f"{model}/random")
    assert not caplog.messages


UNSUPPORTED = [
    ("roberta-ViT-B-32/laion2b_s12b_b32k", "text tower of transformers .roberta-base"),
    ("xlm-roberta-base-ViT-B-32/random", "text tower of transformers .xlm-roberta-base"),
    ("coca_ViT-B-32/laion2b_s13b_b90k", "is a CoCa"),
    ("coca_roberta-ViT-B-32/random", "is a CoCa"),
    ("EVA02-B-16/merged2b_s8b_b131k", "custom_text"),
    ("ViT-B-16-SigLIP/webli", "custom_text"),
    ("ViT-H-14-CLIPA/random", "tokenizer of transformers"),
    ("nllb-clip-base/v1", "text tower of transformers"),
]


@pytest.mark.parametrize(("spec", "reason"), UNSUPPORTED)
def test_towers_that_are_not_taken_are_refused_before_anything_is_downloaded(
    spec: str, reason: str
) -> None:
    with pytest.raises(BackboneUnsupported, match=reason):
        open_clip_source(spec)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("ViT-B-16/openia", "no pretrained weights called 'openia'. Known: openai"),
        ("ViT-B-16", "no pretrained weights called ''. Known: openai"),
        ("ViT-B-16/random@w.pt", "no pretrained weights called 'random'"),
        ("ViT-B-17/openai", "no model 'ViT-B-17'"),
        ("vit-b-32/openai", "Did you mean ViT-B-32"),
        ("ViT-B-32@missing.pt", "no checkpoint file missing.pt. Write ViT-B-32@FILE"),
        ("ViT-B-32/openai@missing.pt", "Write ViT-B-32/openai@FILE"),
        ("hf-hub:org/model", "no backbone in 'hf-hub:org/model'"),
        ("models/clip/b32", "no backbone in 'models/clip/b32'"),
        ("/models/b32", "no folder /models/b32"),
    ],
)
def test_names_that_are_wrong_say_how_to_write_them(spec: str, told: str) -> None:
    with pytest.raises(BackboneUnavailable) as caught:
        load_backbone(spec)
    assert told in str(caught.value)


def test_a_file_alone_says_how_to_name_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").touch()
    for spec in ("weights.pt", "./weights.pt", str(tmp_path / "weights.pt")):
        with pytest.raises(BackboneUnavailable, match=r"MODEL/TAG@.*weights\.pt"):
            load_backbone(spec)


def settings(source: Source) -> BackboneSettings:
    size = source.model_cfg["vision_cfg"]["image_size"]
    preprocessing = preprocessing_of(source.name, size, source.preprocess_cfg)
    return settings_of(source.model_cfg, preprocessing, source.merges)


def test_a_seed_is_another_backbone(tiny_backbone: Backbone, tmp_path: Path) -> None:
    other = load_backbone(str(write_tiny_backbone(tmp_path / "tiny", seed=5)))
    assert other.ref.fingerprint != tiny_backbone.ref.fingerprint
    assert other.settings == tiny_backbone.settings


@pytest.mark.parametrize("values", [(0, 0, 0), [0.0, 0.0, 0.0], (0, 0.0, False)])
def test_numbers_are_equal_however_they_are_written(values: Any) -> None:
    assert preprocessing_of("x", 32, {"mean": values}).mean == (0.0, 0.0, 0.0)
    assert all(type(value) is float for value in preprocessing_of("x", 32, {"mean": values}).mean)
