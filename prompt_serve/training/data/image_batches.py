"""Image features of a training step: looked up, or computed by the prompted image tower."""

import hashlib
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.clip.frozen_towers import FrozenTowers
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.data.pixels import PixelSet

ImageData = FeatureSet | PixelSet
DIGESTED = 256  # images that ``digest_of`` reads


class ImageBatches(Protocol):
    """N images in K views."""

    labels: Tensor  # (N,)
    n_views: int

    def features(self, images: Tensor, views: Tensor, vectors: PromptVectors[Tensor]) -> Tensor:
        """Return features (B, E) of views ``views`` (B,) of images ``images`` (B,)."""


def image_batches(data: ImageData, towers: FrozenTowers) -> ImageBatches:
    """Return batches that fit the type of data."""
    if isinstance(data, FeatureSet):
        return CachedImages(data, towers.backbone.device)
    return PromptedImages(data, towers)


def digest_of(data: ImageData) -> str:
    """Return a sha256 over all labels and the first view of up to DIGESTED images, evenly spread.

    It tells image sets apart in checkpoints.
    """
    chosen = np.unique(np.linspace(0, len(data) - 1, DIGESTED).round().astype(np.int64))
    views = data.features if isinstance(data, FeatureSet) else data.pixels
    digest = hashlib.sha256(str(views.shape).encode())
    digest.update(np.ascontiguousarray(data.labels).tobytes())
    digest.update(np.ascontiguousarray(views[chosen, np.zeros_like(chosen)]).tobytes())
    return digest.hexdigest()


class CachedImages:
    """Cached features of a frozen image tower without prompts."""

    def __init__(self, data: FeatureSet, device: torch.device) -> None:
        self._features = torch.from_numpy(data.features).to(device)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.n_views = data.features.shape[1]

    @property
    def plain(self) -> Tensor:
        """Features (N, E) of the first view."""
        return self._features[:, 0]

    def features(self, images: Tensor, views: Tensor, vectors: PromptVectors[Tensor]) -> Tensor:
        if vectors.context is not None or vectors.keys_values:
            raise TypeError("Vectors of the image branch need pixels to learn from, not features.")
        return self._features[images, views]


class PromptedImages:
    """Pixels that pass the image tower with the learned vectors of the step."""

    def __init__(self, data: PixelSet, towers: FrozenTowers) -> None:
        self._pixels = data.pixels
        self._towers = towers
        self.labels = torch.from_numpy(data.labels).to(towers.backbone.device)
        self.n_views = data.n_views

    def features(self, images: Tensor, views: Tensor, vectors: PromptVectors[Tensor]) -> Tensor:
        pixels = torch.from_numpy(self._pixels[images.numpy(), views.numpy()])  # (B, S, S, 3)
        return self._towers.image_features(pixels, vectors)
