"""Load a frozen CLIP: the embedded one, an open_clip model, or a local checkpoint.

Names of backbones (``--backbone``, ``prompt-serve export``):

    embedded                        the small CLIP that ships with prompt-serve
    embedded-vit                    the same with a small ViT, for prompts in the image branch
    ViT-B-16/openai                 an open_clip model and pretrained tag; downloaded once
    ViT-B-16@/path/to/weights.pt    an open_clip model with a checkpoint from disk
    ViT-B-16/random                 random weights (seeded), for benchmarks and tests
    /path/to/folder                 a folder with config.json, model.safetensors and merges
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.errors import BackboneUnavailable, BackboneUnsupported
from prompt_serve.preprocess import Preprocessing
from prompt_serve.prompts.class_features import TextSide
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.training.clip.image_tower import ImageTower
from prompt_serve.training.clip.text_tower import TextTower
from prompt_serve.types import BackboneRef, FloatArray, PixelArray

EMBEDDED = "embedded"
EMBEDDED_VIT = "embedded-vit"
RANDOM_SEED = 0
# Images per batch of the image tower. On a CPU the activations of a large batch are allocated from
# the system and freed at every layer: batches of 4 are more than twice as fast as batches of 64.
CPU_BATCH = 4
CUDA_BATCH = 64
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen CLIP in float32, in evaluation mode, on one device."""

    id: str
    clip: open_clip.CLIP
    tokenizer: Tokenizer
    preprocessing: Preprocessing

    @cached_property
    def ref(self) -> BackboneRef:
        """Reference to this backbone, stored in prompt files and bundles."""
        return BackboneRef(
            id=self.id,
            fingerprint=fingerprint(self.clip),
            text_width=self.token_embedding.shape[1],
            embed_dim=self.embed_dim,
            context_length=self.clip.context_length,
        )

    @cached_property
    def text_tower(self) -> TextTower:
        return TextTower(self.clip)

    @cached_property
    def image_tower(self) -> ImageTower:
        """Image tower; raises BackboneUnsupported unless it is a plain vision transformer."""
        return ImageTower(self.clip)

    @cached_property
    def text_side(self) -> TextSide:
        """Tokenizer and sizes that class features need beside the text tower."""
        return TextSide(
            tokenizer=self.tokenizer,
            token_embedding=self.token_embedding.cpu().numpy(),
            context_length=self.ref.context_length,
            embed_dim=self.embed_dim,
            causal=self.text_tower.causal,
        )

    @torch.inference_mode()
    def encode_text(self, sequences: Sequences) -> FloatArray:
        """Encode assembled sequences of C classes; return (C, E) features of unit length."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        features: FloatArray = (
            self.text_tower(
                tensor(sequences.prefix),
                tensor(sequences.suffix),
                tensor(sequences.eot),
                tuple(map(tensor, sequences.deeper)),
                tuple(map(tensor, sequences.keys_values)),
            )
            .cpu()
            .numpy()
        )
        return features

    @property
    def token_embedding(self) -> Tensor:
        """Token embeddings (V, D)."""
        return cast(Tensor, self.clip.token_embedding.weight).detach()

    @cached_property
    def embed_dim(self) -> int:
        projection = self.clip.text_projection
        if projection is None:
            return int(self.token_embedding.shape[1])
        return int(
            projection.out_features if hasattr(projection, "out_features") else projection.shape[1]
        )

    @property
    def logit_scale(self) -> float:
        """1 / temperature, already exponentiated."""
        return float(self.clip.logit_scale.detach().exp())

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.clip.logit_scale.device)

    def to(self, device: torch.device | str) -> "Backbone":
        self.clip.to(device)
        return self

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize (B, S, S, 3) uint8 to (B, 3, S, S) float32, the input of the image tower."""
        mean = torch.tensor(self.preprocessing.mean, device=pixels.device) * 255
        std = torch.tensor(self.preprocessing.std, device=pixels.device) * 255
        # A view, not a copy: channels stay last in memory, as in the tower's weights (_backbone),
        # which makes convolutions on a CPU up to twice as fast.
        return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode (B, S, S, 3) uint8 pixels; return (B, E) image features of unit length."""
        features = self.clip.visual(self.normalize(pixels.to(self.device)))
        return F.normalize(features.float(), dim=-1)

    def encode_pixels(self, pixels: PixelArray) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features of unit length."""
        features: FloatArray = self.encode_images(torch.from_numpy(pixels)).cpu().numpy()
        return features

    @property
    def batch_size(self) -> int:
        """Images to encode at once."""
        return CPU_BATCH if self.device.type == "cpu" else CUDA_BATCH

    @property
    def runtime(self) -> str:
        """Empty: PyTorch runs the tower."""
        return ""


def load_backbone(spec: str = EMBEDDED) -> Backbone:
    """Load a backbone by its name (see the module's docstring), frozen, on the CPU.

    Raises:
        BackboneUnavailable: no such model, or its weights cannot be loaded.
        BackboneUnsupported: the model is not an open_clip ``CLIP`` with a BPE tokenizer.
    """
    if spec in (EMBEDDED, EMBEDDED_VIT):
        return _load_folder(Path(str(resources.files("prompt_serve") / "assets" / spec)))
    if (Path(spec) / _CONFIG).is_file() or Path(spec).is_absolute():
        return _load_folder(Path(spec))
    if "@" in spec:
        name, checkpoint = spec.split("@", 1)
        return _load_checkpoint(name, Path(checkpoint))
    name, _, tag = spec.partition("/")
    if tag == "random":
        return _load_random(name)
    return _load_pretrained(name, tag)


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


def _load_folder(folder: Path) -> Backbone:
    """Load a backbone from its files.

    A config with ``"text_from": NAME`` has no text tower of its own: the tokenizer and all tensors
    outside ``visual.`` come from the folder NAME beside it.
    """
    config = json.loads(_required(folder, _CONFIG).read_text())
    weights = load_file(_required(folder, _WEIGHTS))
    text_folder, text_config = folder, config
    if "text_from" in config:
        text_folder = folder.parent / config["text_from"]
        text_config = json.loads(_required(text_folder, _CONFIG).read_text())
        text_weights = load_file(_required(text_folder, _WEIGHTS))
        weights |= {k: v for k, v in text_weights.items() if not k.startswith("visual.")}
    tokenizer = Tokenizer.from_merges(_required(text_folder, text_config["tokenizer"]["bpe"]))
    clip = open_clip.CLIP(**config["model_cfg"])
    try:
        clip.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
        )
    except RuntimeError as error:
        raise BackboneUnavailable(
            f"The weights in {folder} do not fit its {_CONFIG}: {error}\n"
            f"Take both files from one release."
        ) from error
    return _backbone(config["id"], clip, tokenizer, config["preprocess_cfg"])


def _required(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise BackboneUnavailable(
            f"The backbone in {folder} is incomplete: there is no {name}. "
            f"If it came with prompt-serve, the installation is damaged: install it again."
        )
    return path


def _load_random(name: str) -> Backbone:
    _check_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        clip = open_clip.create_model(name, pretrained=None, device="cpu")
    return _from_open_clip(f"{name}/random", name, clip)


def _load_checkpoint(name: str, checkpoint: Path) -> Backbone:
    _check_name(name)
    if not checkpoint.is_file():
        raise BackboneUnavailable(
            f"There is no checkpoint file {checkpoint}. "
            f"Give the path of a state dict for {name} (.pt, .bin or .safetensors)."
        )
    try:
        clip = open_clip.create_model(name, pretrained=str(checkpoint), device="cpu")
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise BackboneUnavailable(
            f"{checkpoint} cannot be loaded as weights of {name}: {error}"
        ) from error
    return _from_open_clip(f"{name}@{checkpoint.name}", name, clip)


def _load_pretrained(name: str, tag: str) -> Backbone:
    _check_name(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise BackboneUnavailable(
            f"{name} has no pretrained weights called {tag!r}. Known: {', '.join(tags) or 'none'}. "
            f"Write MODEL/TAG, as in ViT-B-16/openai, or MODEL@FILE for a checkpoint on disk."
        )
    # OpenAI's weights, and some others, were trained with QuickGELU; the plain model name is not.
    quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    try:
        clip = open_clip.create_model(name, pretrained=tag, device="cpu", force_quick_gelu=quick)
    except Exception as error:  # the hub client raises a dozen unrelated types without a network
        raise BackboneUnavailable(
            f"The weights of {name}/{tag} could not be downloaded: {error}\n"
            f"Download them where there is a network, copy the file here, and give its path: "
            f"{name}@/path/to/the/file"
        ) from error
    return _from_open_clip(f"{name}/{tag}", name, clip)


def _check_name(name: str) -> None:
    models = open_clip.list_models()
    if name not in models:
        close = [model for model in models if name.lower() in model.lower()][:8]
        raise BackboneUnavailable(
            f"open_clip has no model {name!r}. "
            + (f"Did you mean {', '.join(close)}? " if close else "")
            + "Names look like ViT-B-16/openai, ViT-B-16@weights.pt, RN50/random, embedded or "
            + "embedded-vit."
        )


def _from_open_clip(backbone_id: str, name: str, clip: torch.nn.Module) -> Backbone:
    if not isinstance(clip, open_clip.CLIP):
        raise BackboneUnsupported(
            f"{name} is an open_clip {type(clip).__name__}; only its CLIP class "
            f"(CLIP's own text transformer) can be prompted and exported."
        )
    if not isinstance(open_clip.get_tokenizer(name), SimpleTokenizer):
        raise BackboneUnsupported(
            f"{name} has a tokenizer other than CLIP's byte-pair encoding; that is not supported."
        )
    tokenizer = Tokenizer.from_merges(Path(default_bpe()))
    return _backbone(backbone_id, clip, tokenizer, clip.visual.preprocess_cfg)


def _backbone(
    backbone_id: str, clip: open_clip.CLIP, tokenizer: Tokenizer, config: dict[str, Any]
) -> Backbone:
    clip.float().eval().requires_grad_(False)
    clip.visual.to(memory_format=torch.channels_last)
    size = config["size"]
    width = size if isinstance(size, int) else size[0]
    if not isinstance(size, int) and size[0] != size[1]:
        raise BackboneUnsupported(
            f"{backbone_id} takes images of {size}; only square images are supported."
        )
    if config.get("resize_mode", "shortest") not in ("shortest", "squash"):
        raise BackboneUnsupported(
            f"{backbone_id} resizes by {config['resize_mode']!r}; expected 'shortest' or 'squash'."
        )
    return Backbone(
        id=backbone_id,
        clip=clip,
        tokenizer=tokenizer,
        preprocessing=Preprocessing(
            image_size=width,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config.get("interpolation", "bicubic"),
            resize_mode=config.get("resize_mode", "shortest"),
        ),
    )
