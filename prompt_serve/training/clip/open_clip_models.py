"""Backbones by open_clip's names: MODEL/TAG, MODEL/TAG@FILE, MODEL@FILE and MODEL/random.

A tag says how its weights were trained: with which activation and which preprocessing. Both are
part of what the weights mean, and a file does not show them.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip

from prompt_serve.bundle import SHIPPED
from prompt_serve.errors import BackboneUnavailable, did_you_mean
from prompt_serve.text_files import expand_user
from prompt_serve.training.clip.checkpoint_file import StateDict, read_checkpoint
from prompt_serve.training.clip.downloads import check_connection, pretrained_weights
from prompt_serve.training.clip.source import (
    Source,
    clip_merges,
    preprocessing_of,
    supported_cfg,
)

RANDOM = "random"
_QUICK = "-quickgelu"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")  # of a tag

_log = logging.getLogger(__name__)


def open_clip_source(spec: str) -> Source:
    """Describe a backbone by its name.

    A warning is logged where a bare MODEL@FILE could be the weights of a tag with other settings.

    Raises:
        BackboneUnavailable: unknown model or tag, or there is no such file.
        BackboneUnsupported: the model cannot be prompted.
    """
    label, at, file = spec.partition("@")
    name, _, tag = label.partition("/")
    config = _config(name, spec)
    without_tag = not tag if at else tag == RANDOM
    tag_cfg = {} if without_tag else _tag_cfg(name, tag)
    if tag_cfg.get("quick_gelu"):
        config["quick_gelu"] = True
    checkpoint = expand_user(file)
    if at and not checkpoint.is_file():
        raise BackboneUnavailable(
            f"There is no checkpoint file {file or '(no name)'}. Write {label}@FILE with the path "
            f"of a .pt, .bin or .safetensors file."
        )
    if at and without_tag:
        _warn_of_tags(name, file, config)

    def weights() -> StateDict:
        return read_checkpoint(checkpoint if at else pretrained_weights(label, tag_cfg))

    return Source(
        id=f"{label}@{checkpoint.name}" if at else label,
        name=label,
        model_cfg=config,
        preprocess_cfg={k: v for k, v in tag_cfg.items() if k in _PREPROCESSING},
        merges=clip_merges(),
        read_weights=None if without_tag and not at else weights,
        check_weights=lambda: None if at or without_tag else check_connection(label, tag_cfg),
    )


def _config(name: str, spec: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        models = open_clip.list_models()
        close = [model for model in models if name and name.lower() in model.lower()]
        close = sorted(close, key=len)[:8]
        hint = (
            f" Did you mean {', '.join(close)}?"
            if close
            else did_you_mean(name, [*SHIPPED, *models])
        )
        is_path = (
            ":" in name
            or "/" in spec.partition("/")[2]
            or spec.startswith((".", "~"))
            or Path(spec).exists()
        )
        raise BackboneUnavailable(
            (f"There is no backbone in {spec!r}. " if is_path else "")
            + f"open_clip has no model {name!r}.{hint} "
            + "Names look like ViT-B-16/openai, ViT-B-16/openai@weights.pt, RN50/random, embedded "
            + "or embedded-vit; a folder has config.json or open_clip_config.json."
        )
    return supported_cfg(name, config)


def _tag_cfg(name: str, tag: str) -> Mapping[str, Any]:
    tags = open_clip.list_pretrained_tags_by_model(name)
    found: Mapping[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not found:
        raise BackboneUnavailable(
            f"{name} has no pretrained weights called {tag!r}. Known: {', '.join(tags) or 'none'}."
            f"{did_you_mean(tag, tags)} Write MODEL/TAG, as in ViT-B-16/openai, or MODEL@FILE "
            f"for weights of your own."
        )
    return found


def _warn_of_tags(name: str, file: str, config: Mapping[str, Any]) -> None:
    """Log the tags of a model whose settings differ from those that a bare MODEL@FILE gets."""
    used = _settings(name, {"quick_gelu": config.get("quick_gelu", False)})
    plain = name.removesuffix(_QUICK)  # lists the tags of both activations
    others: dict[str, list[str]] = {}
    for tag in open_clip.list_pretrained_tags_by_model(plain):
        of_tag = _settings(name, open_clip.get_pretrained_cfg(plain, tag))
        differ = [f"{key} {value}" for key, value in of_tag.items() if value != used[key]]
        if differ:
            others.setdefault(", ".join(differ), []).append(f"{plain}/{tag}")
    if others:
        _log.warning(
            "%s@%s is read with %s. These pretrained weights of the model need other settings; if "
            "the file is one of them, write its tag, as in %s@%s:\n%s",
            name,
            file,
            ", ".join(f"{key} {value}" for key, value in used.items()),
            next(iter(others.values()))[0],
            file,
            "\n".join(f"  {settings}: {', '.join(tags)}" for settings, tags in others.items()),
        )


def _settings(name: str, tag_cfg: Mapping[str, Any]) -> dict[str, Any]:
    preprocessing = preprocessing_of(name, 1, tag_cfg)
    return {
        "activation": "QuickGELU" if tag_cfg.get("quick_gelu") else "GELU",
        "mean": _rounded(preprocessing.mean),
        "std": _rounded(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "resize mode": preprocessing.resize_mode,
    }


def _rounded(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.3g}" for value in values)
