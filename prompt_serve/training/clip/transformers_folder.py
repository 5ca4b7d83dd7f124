"""Read a CLIP in the layout of transformers (``CLIPModel.save_pretrained``) as open_clip's.

config.json                text_config, vision_config and projection_dim
model.safetensors          or pytorch_model.bin
preprocessor_config.json   optional; CLIP's preprocessing without it
merges.txt                 optional; must be CLIP's
"""

import gzip
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prompt_serve.errors import BackboneUnavailable, BackboneUnsupported
from prompt_serve.training.clip.checkpoint_file import StateDict, read_tensors
from prompt_serve.training.clip.source import Source, clip_merges

MODEL_TYPE = "clip"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_QUICK_GELU = {"quick_gelu": True, "gelu": False}
_EPS = 1e-5
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_MERGES = 49_152 - 256 - 2  # CLIP uses no more of its list
# What a config.json may leave out: transformers' defaults.
_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": _EPS,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": _EPS,
}
_LAYER = re.compile(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_BLOCKS = {
    "text_model": "transformer.resblocks",
    "vision_model": "visual.transformer.resblocks",
}
_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_QUERY, _KEY, _VALUE = (f"self_attn.{letter}_proj" for letter in "qkv")
_OTHERS = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TRANSPOSED = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}


def transformers_source(
    folder: Path, config: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> Source:
    """Describe the CLIP in a folder.

    Args:
        folder: folder with the files above.
        config: content of ``config.json``.
        preprocessor: content of ``preprocessor_config.json``, empty without one.

    Raises:
        BackboneUnavailable: there are no weights.
        BackboneUnsupported: activation, preprocessing or tokenizer are not supported.
    """
    paths = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not paths:
        raise BackboneUnavailable(
            f"{folder} has no weights; expected {' or '.join(_WEIGHTS)}, in one file."
        )
    _check_merges(folder)
    model_cfg = _model_cfg(folder, config)
    size = model_cfg["vision_cfg"]["image_size"]
    return Source(
        id=folder.absolute().name,
        name=f"{folder}/config.json",
        model_cfg=model_cfg,
        preprocess_cfg=_preprocess_cfg(folder, preprocessor, size),
        merges=clip_merges(),
        read_weights=lambda: _converted(read_tensors(paths[0])),
    )


def _model_cfg(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    text, vision = (
        # Old files repeat the options in NAME_config_dict, which wins in transformers.
        {**defaults, **(config.get(f"{n}_config") or {}), **(config.get(f"{n}_config_dict") or {})}
        for n, defaults in (("text", _TEXT), ("vision", _VISION))
    )
    activations = {text["hidden_act"], vision["hidden_act"]}
    if len(activations) > 1 or not activations <= _QUICK_GELU.keys():
        raise BackboneUnsupported(
            f"{folder} has the activations {' and '.join(sorted(activations))}; expected "
            f"quick_gelu or gelu in both towers."
        )
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": _QUICK_GELU[text["hidden_act"]],
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_common(vision),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "layers": text["num_hidden_layers"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            **_common(text),
        },
    }


def _common(tower: Mapping[str, Any]) -> dict[str, Any]:
    eps = tower["layer_norm_eps"]
    return {
        "mlp_ratio": tower["intermediate_size"] / tower["hidden_size"],
        "norm_kwargs": None if eps == _EPS else {"eps": eps},
    }


def _preprocess_cfg(folder: Path, given: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Return open_clip's description of a preprocessing.

    Raises:
        BackboneUnsupported: it is neither "resize the short side, crop" nor "resize to a square".
    """
    size, crop = given.get("size", image_size), given.get("crop_size", image_size)
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    square = {"height": image_size, "width": image_size}
    shortest = size == {"shortest_edge": image_size} and crop == square
    interpolation = _RESAMPLING.get(given.get("resample", 3))
    switched_off = [
        name
        for name in ("do_resize", "do_rescale", "do_normalize", "do_center_crop")
        if given.get(name) is False and not (name == "do_center_crop" and size == square)
    ]
    if switched_off or interpolation is None or not (shortest or size == square):
        raise BackboneUnsupported(
            f"{folder}/preprocessor_config.json describes a preprocessing that is not supported; "
            f"expected images of {image_size} pixels, resized by the short side and cropped, or "
            f"resized to a square, bicubic or bilinear."
        )
    described = {
        "interpolation": interpolation,
        "resize_mode": "shortest" if shortest else "squash",
        "mean": given.get("image_mean"),
        "std": given.get("image_std"),
    }
    return {key: value for key, value in described.items() if value is not None}


def _check_merges(folder: Path) -> None:
    path = folder / "merges.txt"
    if not path.is_file():
        return
    found = path.read_text(encoding="utf-8").rstrip().split("\n")[1:]
    clips = gzip.decompress(clip_merges().read_bytes()).decode("utf-8").split("\n")[1:]
    if found != clips[:_MERGES]:
        raise BackboneUnsupported(
            f"{path} is not CLIP's list of merges; other tokenizers are not supported."
        )


def _converted(weights: StateDict) -> StateDict:
    """Return weights by open_clip's names; unknown ones keep their name."""
    found: StateDict = {}
    for name, tensor in weights.items():
        layer = _LAYER.fullmatch(name)
        if layer is not None:
            tower, index, part, kind = layer.groups()
            block = f"{_BLOCKS[tower]}.{index}"
            if part in _PARTS:
                found[f"{block}.{_PARTS[part]}.{kind}"] = tensor
            elif part == _QUERY:
                rest = [weights[name.replace(_QUERY, other)] for other in (_KEY, _VALUE)]
                found[f"{block}.attn.in_proj_{kind}"] = torch.cat([tensor, *rest])
            elif part not in (_KEY, _VALUE):
                found[name] = tensor
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.T
        elif not name.endswith(".position_ids"):
            found[_OTHERS.get(name, name)] = tensor
    return found
