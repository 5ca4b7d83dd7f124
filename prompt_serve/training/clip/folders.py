"""Backbones in folders: prompt-serve's own, open_clip's and transformers' layout.

config.json with model_cfg          prompt-serve: model.safetensors, a list of merges
open_clip_config.json               open_clip, as on the model hub
config.json with model_type clip    transformers' CLIPModel
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_serve.errors import BackboneUnavailable, BackboneUnsupported
from prompt_serve.training.clip.checkpoint_file import StateDict, read_checkpoint, read_tensors
from prompt_serve.training.clip.source import Source, clip_merges, supported_cfg
from prompt_serve.training.clip.transformers_folder import MODEL_TYPE, transformers_source

CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
_WEIGHTS = "model.safetensors"
_MANIFEST = "manifest.json"
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    _WEIGHTS,
    "pytorch_model.bin",
)


def folder_source(folder: Path) -> Source:
    """Describe the backbone in a folder.

    Raises:
        BackboneUnavailable: the folder has no backbone, or lacks a file.
        BackboneUnsupported: it is a model that cannot be prompted.
    """
    if not folder.is_dir():
        raise BackboneUnavailable(
            f"{folder} is a file; say which weights it has: MODEL/TAG@{folder}, as in "
            f"ViT-B-16/openai@{folder}, or MODEL@{folder} for weights of your own."
            if folder.exists()
            else f"There is no folder {folder}."
        )
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return _open_clip(folder, folder / OPEN_CLIP_CONFIG)
    names = (_MANIFEST, CONFIG, _WEIGHTS)
    if [(folder / name).is_file() for name in names] == [True, False, False]:
        raise BackboneUnavailable(
            f"{folder} is an exported bundle, which serves but cannot be trained on or exported. "
            f"Name the backbone that it was exported from: {_exported_from(folder)}."
        )
    config = _json(_required(folder, CONFIG))
    if "model_cfg" in config:  # open_clip's own has no id
        return _own(folder, config) if "id" in config else _open_clip(folder, folder / CONFIG)
    if config.get("model_type") == MODEL_TYPE:
        preprocessor = folder / "preprocessor_config.json"
        return transformers_source(
            folder, config, _json(preprocessor) if preprocessor.is_file() else {}
        )
    kind = config.get("model_type") or ", ".join(config.get("architectures") or ()) or "unknown"
    raise BackboneUnsupported(
        f"{folder} is a transformers folder of a {kind!r} model, which is not a CLIP. Take "
        f"a CLIP as MODEL/TAG such as ViT-B-16/openai, or a folder with {OPEN_CLIP_CONFIG}."
    )


def _own(folder: Path, config: Mapping[str, Any]) -> Source:
    """Describe a folder of prompt-serve.

    A config with ``"text_from": NAME`` has no text tower of its own: the tokenizer and all tensors
    outside ``visual.`` come from the folder NAME beside it.
    """
    path = _required(folder, _WEIGHTS)
    text_folder, text_config, text_path = folder, config, path
    if "text_from" in config:
        text_folder = folder.parent / config["text_from"]
        text_config = _json(_required(text_folder, CONFIG))
        text_path = _required(text_folder, _WEIGHTS)

    def weights() -> StateDict:
        found = read_tensors(path)
        if text_path != path:
            text = read_tensors(text_path)
            found |= {k: v for k, v in text.items() if not k.startswith("visual.")}
        return found

    return Source(
        id=config["id"],
        name=f"{folder}/{CONFIG}",
        model_cfg=supported_cfg(str(folder), config["model_cfg"]),
        preprocess_cfg=config["preprocess_cfg"],
        merges=_required(text_folder, text_config["tokenizer"]["bpe"]),
        read_weights=weights,
    )


def _open_clip(folder: Path, path: Path) -> Source:
    config = _json(path)
    if "model_cfg" not in config:
        raise BackboneUnavailable(f"{path} has no model_cfg, so it is not a model of open_clip.")
    cfg = supported_cfg(str(folder), config["model_cfg"])
    present = [folder / name for name in _OPEN_CLIP_WEIGHTS if (folder / name).is_file()]
    if not present:
        raise BackboneUnavailable(
            f"{folder} has no weights; expected {' or '.join(_OPEN_CLIP_WEIGHTS[:3])}. If it came "
            f"from a model hub, download it completely."
        )
    return Source(
        id=folder.absolute().name,
        name=str(path),
        model_cfg=cfg,
        preprocess_cfg=config.get("preprocess_cfg", {}),
        merges=clip_merges(),
        read_weights=lambda: read_checkpoint(present[0]),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BackboneUnavailable(f"{path} is not JSON: {error}. Copy it again.") from error
    if not isinstance(content, dict):
        raise BackboneUnavailable(f"{path} is not a JSON object. Copy it again.")
    return content


def _exported_from(folder: Path) -> str:
    backbone = _json(folder / _MANIFEST).get("backbone")
    return str(backbone.get("id")) if isinstance(backbone, dict) else "see its manifest"


def _required(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise BackboneUnavailable(
            f"The backbone in {folder} is incomplete: there is no {name}. "
            f"If it came with prompt-serve, the installation is damaged: install it again."
        )
    return path
