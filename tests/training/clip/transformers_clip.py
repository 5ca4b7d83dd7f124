"""A small random CLIP in transformers' layout, and its features as transformers computes them.

``python -m tests.training.clip.transformers_clip`` writes the features to tests/data; it needs
transformers (5.x), which is no dependency of the project.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

FEATURES = Path(__file__).parents[2] / "data" / "transformers_features.json"
TOKENS = [[49406, 320, 2368, 49407], [49406, 1125, 736, 49407]]  # start, two words, end
ACTIVATIONS = ("quick_gelu", "gelu")
EMBED_DIM, IMAGE_SIZE, LAYERS = 12, 32, 2
TEXT_WIDTH, IMAGE_WIDTH = 16, 24


def write_transformers_clip(folder: Path, activation: str) -> Path:
    """Write a two-layer CLIP with weights that depend on numpy's seeded generator alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(activation)))
    save_file(_weights(), folder / "model.safetensors")
    return folder


def pixels() -> Tensor:
    """Normalized images (2, 3, S, S)."""
    rng = np.random.default_rng(2)
    return torch.from_numpy(rng.normal(size=(2, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32))


def _config(activation: str) -> dict[str, Any]:
    common = {
        "hidden_act": activation,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "layer_norm_eps": 1e-3,
    }
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": EMBED_DIM,
        "text_config": {**common, "hidden_size": TEXT_WIDTH, "eos_token_id": 49407},
        "vision_config": {
            **common,
            "hidden_size": IMAGE_WIDTH,
            "image_size": IMAGE_SIZE,
            "patch_size": 16,
        },
    }


def _weights() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_projection.weight": (EMBED_DIM, TEXT_WIDTH),
        "visual_projection.weight": (EMBED_DIM, IMAGE_WIDTH),
        "text_model.embeddings.token_embedding.weight": (49408, TEXT_WIDTH),
        "text_model.embeddings.position_embedding.weight": (77, TEXT_WIDTH),
        **_norm("text_model.final_layer_norm", TEXT_WIDTH),
        "vision_model.embeddings.class_embedding": (IMAGE_WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (IMAGE_WIDTH, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": (5, IMAGE_WIDTH),
        **_norm("vision_model.pre_layrnorm", IMAGE_WIDTH),
        **_norm("vision_model.post_layernorm", IMAGE_WIDTH),
    }
    for tower, width in (("text_model", TEXT_WIDTH), ("vision_model", IMAGE_WIDTH)):
        for layer in range(LAYERS):
            shapes |= _block(f"{tower}.encoder.layers.{layer}", width)
    rng = np.random.default_rng(1)
    return {
        name: torch.from_numpy(np.asarray(rng.normal(size=shape, scale=0.4), dtype=np.float32))
        for name, shape in shapes.items()
    }


def _block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = _norm(f"{name}.layer_norm1", width) | _norm(f"{name}.layer_norm2", width)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= _linear(f"{name}.self_attn.{part}", width, width)
    return shapes | _linear(f"{name}.mlp.fc1", width, 40) | _linear(f"{name}.mlp.fc2", 40, width)


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


@torch.inference_mode()
def _write_features() -> None:
    import tempfile

    from transformers import CLIPModel  # type: ignore[import-not-found]

    found = {}
    for activation in ACTIVATIONS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_transformers_clip(Path(temporary), activation)
            model, told = CLIPModel.from_pretrained(folder, output_loading_info=True)
        assert not any(told.values()), told
        output = model.eval()(input_ids=torch.tensor(TOKENS), pixel_values=pixels())
        found[activation] = {
            "image": output.image_embeds.tolist(),
            "text": output.text_embeds.tolist(),
        }
    FEATURES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    _write_features()
