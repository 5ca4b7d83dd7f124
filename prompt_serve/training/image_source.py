"""Where a step's image features come from: looked up, or computed by the prompted image tower."""

from typing import Protocol

import torch
from torch import Tensor

from prompt_serve.contexts import BranchContext
from prompt_serve.training.features import FeatureSet
from prompt_serve.training.pixels import PixelSet
from prompt_serve.training.towers import FrozenTowers

ImageData = FeatureSet | PixelSet


class ImageSource(Protocol):
    """N images in K views."""

    labels: Tensor  # (N,)
    n_views: int

    def features(self, images: Tensor, views: Tensor, vectors: BranchContext[Tensor]) -> Tensor:
        """Image features (B, E) of views ``views`` (B,) of images ``images`` (B,)."""


def image_source(data: ImageData, towers: FrozenTowers) -> ImageSource:
    """The source that fits the data."""
    if isinstance(data, FeatureSet):
        return CachedImages(data, towers.backbone.device)
    return PromptedImages(data, towers)


class CachedImages:
    """Features that never change, since the image tower is frozen and not prompted."""

    def __init__(self, data: FeatureSet, device: torch.device) -> None:
        self._features = torch.from_numpy(data.features).to(device)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.n_views = data.features.shape[1]

    def features(self, images: Tensor, views: Tensor, vectors: BranchContext[Tensor]) -> Tensor:
        return self._features[images, views]


class PromptedImages:
    """Pixels that go through the image tower with the learned vectors of the step."""

    def __init__(self, data: PixelSet, towers: FrozenTowers) -> None:
        self._pixels = data.pixels
        self._towers = towers
        self.labels = torch.from_numpy(data.labels).to(towers.backbone.device)
        self.n_views = data.n_views

    def features(self, images: Tensor, views: Tensor, vectors: BranchContext[Tensor]) -> Tensor:
        pixels = torch.from_numpy(self._pixels[images.numpy(), views.numpy()])
        return self._towers.image_features(pixels, vectors)
