"""Write the small ViT as the shipped backbone `embedded-vit`: image tower only, beside `embedded`.

`python -m pretraining.vit_shipped --work DIR` writes what the training has reached so far.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from pretraining.names import EMBED_DIM
from pretraining.small_vit import FINAL, HEAD_WIDTH, MEAN, SIZE, STD, embedding_weights
from pretraining.text_tower import TEXT_CFG
from pretraining.workdir import EMBEDDED, EMBEDDED_VIT, WorkDir, written_whole

SIZE_LIMIT_BYTES = 11_000_000
MODEL_CFG: dict[str, Any] = {
    "embed_dim": EMBED_DIM,
    "vision_cfg": {
        "image_size": SIZE,
        "patch_size": FINAL.patch,
        "width": FINAL.width,
        "layers": FINAL.layers,
        "head_width": HEAD_WIDTH,
        "mlp_ratio": 4.0,
    },
    "text_cfg": TEXT_CFG,
}
CONFIG = {
    "id": "embedded-vit",
    "model_cfg": MODEL_CFG,
    "preprocess_cfg": {
        "size": SIZE,
        "mode": "RGB",
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
    # Tensors outside `visual.` and the tokenizer are loaded from this folder.
    "text_from": EMBEDDED.name,
}


def vit_weights(work: WorkDir) -> dict[str, torch.Tensor]:
    """Load the trained ViT, or its latest checkpoint while it is still training."""
    if work.small_vit.exists():
        weights = torch.load(work.small_vit, weights_only=True)
    else:
        checkpoint = torch.load(work.small_vit.with_suffix(".checkpoint.pt"), weights_only=True)
        weights = embedding_weights(checkpoint["vit"])
    return {f"visual.{name}": tensor.half().contiguous() for name, tensor in weights.items()}


def write_vit(work: WorkDir) -> None:
    """Write model.safetensors (fp16) and config.json to `prompt_serve/assets/embedded-vit`."""
    weights = vit_weights(work)
    wanted = {
        name for name in open_clip.CLIP(**MODEL_CFG).state_dict() if name.startswith("visual.")
    }
    if weights.keys() != wanted:
        raise ValueError(f"Not the tensors of this ViT: {sorted(weights.keys() ^ wanted)}.")
    with written_whole(EMBEDDED_VIT / "model.safetensors") as draft:
        save_file(weights, draft)
        draft.chmod(0o644)
        if draft.stat().st_size > SIZE_LIMIT_BYTES:
            raise ValueError(
                f"{draft.stat().st_size} bytes of weights; at most {SIZE_LIMIT_BYTES} may ship."
            )
    (EMBEDDED_VIT / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def main() -> None:
    """Write the files from the work folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="The pipeline's work folder.")
    given = parser.parse_args()
    write_vit(WorkDir(root=given.work, photo_features=Path(), flowers=Path()))


if __name__ == "__main__":
    main()
