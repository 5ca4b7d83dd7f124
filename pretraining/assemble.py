"""Assemble trunk, projection and text tower into one open_clip CLIP and write the shipped files."""

import json
import math
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from timm.layers.mlp import Mlp
from torch import nn

from pretraining.joint import load_towers
from pretraining.names import EMBED_DIM
from pretraining.text_tower import TEXT_CFG
from pretraining.tokens import CONTEXT_LENGTH
from pretraining.workdir import EMBEDDED, WorkDir, written_whole

SIZE_LIMIT_BYTES = 16_000_000
MODEL_CFG: dict[str, Any] = {
    "embed_dim": EMBED_DIM,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "mlp",
        "timm_proj_bias": True,
        "timm_drop": 0.0,
        "image_size": 224,
    },
    "text_cfg": TEXT_CFG,
}
PREPROCESS_CFG = {
    "size": 224,
    "mode": "RGB",
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
CONFIG = {
    "id": "embedded",
    "model_cfg": MODEL_CFG,
    "preprocess_cfg": PREPROCESS_CFG,
    "tokenizer": {"bpe": "bpe_8k.txt.gz", "context_length": CONTEXT_LENGTH},
}


@torch.no_grad()
def build_clip(
    trunk: dict[str, torch.Tensor], head: Mlp, tower: nn.Module, logit_scale: float
) -> open_clip.CLIP:
    """Assemble a model from its parts; fail if a tensor stays unset."""
    model = open_clip.CLIP(**MODEL_CFG).eval()
    parts = {
        f"visual.trunk.{name}": tensor
        for name, tensor in trunk.items()
        if not name.startswith("classifier.")
    }
    parts |= {f"visual.head.mlp.{name}": tensor for name, tensor in head.state_dict().items()}
    parts |= {name: tensor for name, tensor in tower.state_dict().items() if name != "attn_mask"}
    parts["logit_scale"] = torch.tensor(math.log(logit_scale))
    model.load_state_dict(parts, strict=True)
    return model


def write_shipped(work: WorkDir, model: open_clip.CLIP) -> None:
    """Write model.safetensors (fp16), config.json and the BPE to `prompt_serve/assets/embedded`."""
    EMBEDDED.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    with written_whole(EMBEDDED / "model.safetensors") as draft:
        save_file(weights, draft)
        draft.chmod(0o644)
        if draft.stat().st_size >= SIZE_LIMIT_BYTES:
            raise ValueError(
                f"{draft.stat().st_size} bytes of weights; "
                f"fewer than {SIZE_LIMIT_BYTES} are to be shipped."
            )
    (EMBEDDED / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (EMBEDDED / "bpe_8k.txt.gz").write_bytes(work.bpe.read_bytes())


def assemble(work: WorkDir) -> None:
    """Write the shipped files from the outputs of the stages."""
    towers = load_towers(work.balanced)
    trunk = torch.load(work.trunk, weights_only=True)
    write_shipped(work, build_clip(trunk, towers.head, towers.tower, towers.logit_scale))
