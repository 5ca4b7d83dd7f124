"""One randomly initialized ViT-B/16 for all: of open_clip, of transformers, and class vectors.

The bundles of the service are exported from the same weights (``ViT-B-16/random``).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor

from prompt_serve.preprocess import Preprocessing
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.training.clip.backbone import load_backbone

BACKBONE = "ViT-B-16/random"
CLASS_NAMES = ["daisy", "dandelion", "rose", "sunflower", "tulip",
               "oak", "fern", "moss", "cactus", "palm"]  # fmt: skip
_START, _END = "<|startoftext|>", "<|endoftext|>"
_LAYER_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OTHERS = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers spells it so
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}


def write_weights(folder: Path) -> Path:
    """Write the weights in both forms, and class vectors, unless they are there."""
    if (folder / "classes.npy").is_file():
        return folder
    backbone = load_backbone(BACKBONE)
    clip = backbone.clip
    (folder / "transformers").mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
    torch.save(state, folder / "open_clip.pt")
    save_file(converted(state), folder / "transformers" / "model.safetensors", {"format": "pt"})
    write_json(folder / "transformers", configs(backbone.preprocessing))
    write_tokenizer(folder / "transformers")
    texts = open_clip.tokenize([DEFAULT_TEMPLATE.format(name) for name in CLASS_NAMES])
    with torch.inference_mode():
        classes = clip.encode_text(texts, normalize=True) * clip.logit_scale.exp()
    np.save(folder / "classes.npy", classes.numpy())
    return folder


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of transformers' ``CLIPModel``."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        before, blocks, layer = name.partition("transformer.resblocks.")
        if blocks:
            number, _, part = layer.partition(".")
            tower = "vision_model" if before else "text_model"
            found |= layer_weights(f"{tower}.encoder.layers.{number}", part, tensor)
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif name != "attn_mask":
            found[_OTHERS[name]] = tensor
    return found


def layer_weights(layer: str, part: str, tensor: Tensor) -> dict[str, Tensor]:
    if part.startswith("attn.in_proj_"):
        kind = part.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}.self_attn.{one}_proj.{kind}": rows.clone() for one, rows in parts}
    module, _, kind = part.rpartition(".")
    return {f"{layer}.{_LAYER_PARTS[module]}.{kind}": tensor}


def configs(preprocessing: Preprocessing) -> dict[str, dict[str, Any]]:
    """Return the contents of transformers' files of settings."""
    side = preprocessing.image_size
    shared = {"hidden_act": "gelu", "num_hidden_layers": 12, "projection_dim": 512}
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    tokens = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    special = {"bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": _END}
    return {
        "config.json": {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": 512,
            "text_config": {**shared, **text, **tokens, "model_type": "clip_text_model"},
            "vision_config": {
                **shared, **vision, "image_size": side, "patch_size": 16,
                "model_type": "clip_vision_model",
            },
            "torch_dtype": "float32",
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": list(preprocessing.mean),
            "image_std": list(preprocessing.std),
        },
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special,
        },
        "special_tokens_map.json": special,
    }  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    tokenizer = SimpleTokenizer()
    symbols = sorted(tokenizer.encoder, key=lambda symbol: tokenizer.encoder[symbol])
    vocabulary = {symbol: number for number, symbol in enumerate([*symbols[:-2], _START, _END])}
    write_json(folder, {"vocab.json": vocabulary})
    merges = "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def write_json(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
