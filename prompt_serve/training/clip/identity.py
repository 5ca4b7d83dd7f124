"""Identity of a backbone: one sha256 over everything that changes a feature.

    weights        names, shapes and float32 values
    architecture   what the weights do not show: activation, heads, pooling, norms, masks
    preprocessing  size, mean, std, interpolation, resize mode
    tokenizer      its list of merges

The size at which images are decoded is none of it: it changes features no more than the precision
of a bundle does (``prompt_serve.preprocess``).

Where the settings are those of a plain CLIP, the identity is the digest of the weights alone, which
was the identity of every backbone before settings counted: prompt files of plain backbones keep
theirs. The shipped backbones, whose settings differ, keep theirs too (``_PUBLISHED``).
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from prompt_serve.preprocess import Preprocessing

# sha256 of CLIP's list of merges, unpacked.
_CLIP_MERGES = "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8"
# Digest of the weights: digest of the settings that are known by the digest of the weights alone.
_PUBLISHED = {
    "ea6561ee192fe384b3cc8ea88342c16d917201ab8da2c9c1324e030a38308698": (  # embedded
        "13223579b640cc4195f0ad2d8a1c887fff6f2f7a2f7404d746cde8d96a2834bb"
    ),
    "b1e3ed0c62355e23e6023224953835593d9f1bf6dca8e161e65b2b00dca56152": (  # embedded-vit
        "8985a6f003960849607f2c26cca487827e4511418db68d362cf407262d3ec260"
    ),
}
_HEAD_WIDTH = 64  # of a plain CLIP, in both towers
# Shown by the shapes of the weights, or without effect on a trained tower in evaluation mode.
_SHOWN_BY_WEIGHTS = {
    *("layers", "width", "heads", "mlp_ratio", "patch_size", "image_size", "ls_init_value"),
    *("context_length", "vocab_size"),
}
_NO_EFFECT = {
    *("patch_dropout", "output_tokens", "timm_model_pretrained", "timm_drop", "timm_drop_path"),
    *("hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
}


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """Everything that changes a feature beside the weights.

    Args:
        architecture: arguments of ``open_clip.CLIP`` that differ from a plain CLIP's and are not
            shown by the weights.
        preprocessing: how images become pixels.
        merges: sha256 of the tokenizer's list of merges.
    """

    architecture: Mapping[str, Any]
    preprocessing: Preprocessing
    merges: str

    @property
    def plain(self) -> bool:
        """True for the settings of a plain CLIP; the size of its images is shown by its weights."""
        plain = Preprocessing(
            image_size=self.preprocessing.image_size,
            mean=OPENAI_DATASET_MEAN,
            std=OPENAI_DATASET_STD,
            decoding=self.preprocessing.decoding,
        )
        return not self.architecture and self.merges == _CLIP_MERGES and self.preprocessing == plain

    @property
    def digest(self) -> str:
        """sha256 in hexadecimal."""
        document = asdict(self)
        del document["preprocessing"]["decoding"]
        return _sha256(document)


def settings_of(
    model_cfg: Mapping[str, Any], preprocessing: Preprocessing, merges: Path
) -> BackboneSettings:
    """Return the settings of a backbone.

    Args:
        model_cfg: arguments of ``open_clip.CLIP``.
        preprocessing: how images become pixels.
        merges: gzipped list of merges of the tokenizer.
    """
    text = model_cfg["text_cfg"]
    heads = text.get("heads", CLIPTextCfg.heads)
    architecture = {
        "quick_gelu": bool(model_cfg.get("quick_gelu", False)),
        "text_head_width": text.get("width", CLIPTextCfg.width) // heads,
        "vision": _unusual(CLIPVisionCfg, model_cfg["vision_cfg"]),
        "text": _unusual(CLIPTextCfg, text),
    }
    plain = {"quick_gelu": False, "text_head_width": _HEAD_WIDTH, "vision": {}, "text": {}}
    return BackboneSettings(
        architecture={k: v for k, v in architecture.items() if v != plain[k]},
        preprocessing=preprocessing,
        merges=_merges_digest(merges.read_bytes()),
    )


def identity(weights: str, settings: BackboneSettings) -> str:
    """Return the identity of a backbone.

    Args:
        weights: digest of its weights, from ``fingerprint``.
        settings: everything else that changes a feature.
    """
    if settings.plain or _PUBLISHED.get(weights) == settings.digest:
        return weights
    return _sha256({"weights": weights, "settings": settings.digest})


def fingerprint(clip: torch.nn.Module) -> str:
    """Return a sha256 over names, shapes and float32 values of all weights, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        if not tensor.is_floating_point():
            continue  # counters of batch normalization, which do not affect features
        values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _merges_digest(data: bytes) -> str:
    return hashlib.sha256(gzip.decompress(data)).hexdigest()


def _unusual(kind: type[CLIPVisionCfg | CLIPTextCfg], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that differ from a plain CLIP's and that the weights do not show."""
    defaults = {field.name: field.default for field in fields(kind)}
    ignored = _SHOWN_BY_WEIGHTS | _NO_EFFECT
    return {k: v for k, v in given.items() if k not in ignored and v != defaults[k]}


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
