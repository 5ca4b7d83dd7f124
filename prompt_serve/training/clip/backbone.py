"""Load a frozen CLIP: the embedded one, an open_clip model, or a local checkpoint.

Names of backbones (``--backbone``, ``prompt-serve export``):

    embedded                        the small CLIP that ships with prompt-serve
    embedded-vit                    the same with a small ViT, for prompts in the image branch
    ViT-B-16/openai                 an open_clip model and pretrained tag; downloaded once
    ViT-B-16/openai@weights.pt      the weights of that tag from a file, with the tag's settings
    ViT-B-16@weights.pt             other weights from a file, with the model's own settings
    ViT-B-16/random                 random weights (seeded), for benchmarks and tests
    path/to/folder                  a folder of prompt-serve or open_clip (``folders``)
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.bundle import SHIPPED, shipped_bundle
from prompt_serve.errors import BackboneUnavailable, BackboneUnsupported
from prompt_serve.preprocess import Preprocessing
from prompt_serve.prompts.class_features import TextSide
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.text_files import expand_user
from prompt_serve.training.clip.checkpoint_file import StateDict
from prompt_serve.training.clip.folders import folder_source
from prompt_serve.training.clip.identity import (
    BackboneSettings,
    fingerprint,
    identity,
    settings_of,
)
from prompt_serve.training.clip.image_tower import ImageTower
from prompt_serve.training.clip.open_clip_models import open_clip_source
from prompt_serve.training.clip.source import Source, preprocessing_of
from prompt_serve.training.clip.text_tower import TextTower
from prompt_serve.types import BackboneRef, FloatArray, PixelArray

EMBEDDED = "embedded"
EMBEDDED_VIT = "embedded-vit"
RANDOM_SEED = 0
# Images per batch of the image tower. On a CPU the activations of a large batch are allocated from
# the system and freed at every layer: batches of 4 are more than twice as fast as batches of 64.
CPU_BATCH = 4
CUDA_BATCH = 64
_COUNTER = ".num_batches_tracked"  # of batch normalization, without effect in evaluation


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen CLIP in float32, in evaluation mode, on one device."""

    id: str
    clip: open_clip.CLIP
    tokenizer: Tokenizer
    settings: BackboneSettings

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become pixels."""
        return self.settings.preprocessing

    def decoding_in_full(self) -> "Backbone":
        """Return this backbone with every image decoded at full size, as in the papers."""
        preprocessing = replace(self.preprocessing, decoding="full")
        return replace(self, settings=replace(self.settings, preprocessing=preprocessing))

    @cached_property
    def weights_fingerprint(self) -> str:
        """Digest of the weights alone."""
        return fingerprint(self.clip)

    @property
    def former_fingerprint(self) -> str | None:
        """Fingerprint of this backbone in files from before settings counted; None if the same.

        Also None for a folder, whose settings those files do not show.
        """
        unknown = self.weights_fingerprint == self.ref.fingerprint or not {"/", "@"} & set(self.id)
        return None if unknown else self.weights_fingerprint

    @cached_property
    def ref(self) -> BackboneRef:
        """Reference to this backbone, stored in prompt files and bundles."""
        return BackboneRef(
            id=self.id,
            fingerprint=identity(self.weights_fingerprint, self.settings),
            text_width=self.token_embedding.shape[1],
            embed_dim=self.embed_dim,
            context_length=self.clip.context_length,
        )

    @cached_property
    def text_tower(self) -> TextTower:
        return TextTower(self.clip)

    @property
    def takes_image_vectors(self) -> bool:
        """True if the image tower can be prompted: if it is a plain vision transformer."""
        try:
            return self.image_tower.layers > 0
        except BackboneUnsupported:
            return False

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
        DownloadFailed: its weights cannot be downloaded.
        BackboneUnsupported: the model is not an open_clip ``CLIP`` with a BPE tokenizer.
    """
    return build_backbone(_source(spec))


def build_backbone(source: Source) -> Backbone:
    """Build a backbone from its description; see ``load_backbone``."""
    source.check_weights()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        clip = open_clip.CLIP(**source.model_cfg)
    # Anything that is not supported is rejected before weights are read or downloaded.
    TextTower(clip)
    preprocessing = preprocessing_of(source.name, clip.visual.image_size, source.preprocess_cfg)
    if source.read_weights is not None:
        _load_weights(clip, source.read_weights(), source.name)
    clip.float().eval().requires_grad_(False)
    clip.visual.to(memory_format=torch.channels_last)
    return Backbone(
        id=source.id,
        clip=clip,
        tokenizer=Tokenizer.from_merges(source.merges),
        settings=settings_of(source.model_cfg, preprocessing, source.merges),
    )


def _source(spec: str) -> Source:
    if spec in SHIPPED:
        return folder_source(shipped_bundle(spec))
    path = expand_user(spec)
    if path.exists() or path.is_absolute():
        return folder_source(path)
    return open_clip_source(spec)


def _load_weights(clip: open_clip.CLIP, weights: StateDict, name: str) -> None:
    """Copy weights into a model of the same shapes.

    Raises:
        BackboneUnavailable: they are those of another model.
    """
    expected = clip.state_dict()
    given = {key: tensor for key, tensor in weights.items() if not key.endswith(_COUNTER)}
    for key in given.keys() & expected.keys():  # a scalar, or an array of one
        if given[key].numel() == expected[key].numel() == 1:
            given[key] = given[key].reshape(expected[key].shape)
    missing = [key for key in expected if key not in given and not key.endswith(_COUNTER)]
    unknown = [key for key in given if key not in expected]
    reshaped = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in given
        if key in expected and given[key].shape != expected[key].shape
    ]
    faults = [
        f"{len(keys)} {what} ({', '.join(keys[:2])}{', ...' if len(keys) > 2 else ''})"
        for keys, what in (
            (missing, "missing"),
            (unknown, "unknown"),
            (reshaped, "of another shape"),
        )
        if keys
    ]
    if faults:
        raise BackboneUnavailable(
            f"The weights do not fit {name}: tensors {'; '.join(faults)}. Name the model that the "
            f"weights belong to."
        )
    clip.load_state_dict(given, strict=False)
