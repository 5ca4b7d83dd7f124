"""Small random backbones, written to disk in the layout that ``load_backbone`` reads."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import default_bpe
from safetensors.torch import save_file

TEXT_WIDTH, EMBED_DIM, IMAGE_SIZE, CONTEXT_LENGTH = 32, 24, 32, 32


def write_tiny_backbone(folder: Path, *, seed: int = 0, **text_cfg: Any) -> Path:
    """A two-layer random CLIP with the real vocabulary; a second's work to build and to export."""
    config: dict[str, Any] = {
        "id": folder.name,
        "model_cfg": {
            "embed_dim": EMBED_DIM,
            "vision_cfg": {
                "image_size": IMAGE_SIZE,
                "layers": 2,
                "width": 64,
                "head_width": 32,
                "patch_size": 8,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": 49408,
                "width": TEXT_WIDTH,
                "heads": 2,
                "layers": 2,
                **text_cfg,
            },
        },
        "preprocess_cfg": {"size": IMAGE_SIZE, "mean": [0.5] * 3, "std": [0.25] * 3},
        "tokenizer": {"bpe": "bpe.txt.gz"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**config["model_cfg"])
        # Words of a real CLIP differ; freshly initialized ones are nearly equal to each other.
        torch.nn.init.normal_(clip.token_embedding.weight, std=1.0)
    save_file(clip.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(default_bpe(), folder / "bpe.txt.gz")
    return folder
