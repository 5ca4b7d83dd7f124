"""Check the prompted image graph against PyTorch: one batch of images with different vectors."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from prompt_serve.engines.interface import PromptedEngine
from prompt_serve.export.samples import random_pixels
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.types import FloatArray, PixelArray

Vectors = PromptVectors[FloatArray]
_SCALE = 0.05  # standard deviation of the vectors


def prompted_difference(backbone: Backbone, graph: PromptedEngine) -> float:
    """Return the largest difference of one feature, over images of every kind of prompt."""
    tower = backbone.image_tower
    kinds = list(every_kind(tower.layers, tower.width, np.random.default_rng(0)))
    pixels = random_pixels(backbone.preprocessing, count=len(kinds))
    expected = np.concatenate(
        [features_with(backbone, pixels[i : i + 1], own) for i, own in enumerate(kinds)]
    )
    return float(
        np.abs(expected - graph.encode(pixels, [graph.lay_out(own) for own in kinds])).max()
    )


def features_with(backbone: Backbone, pixels: PixelArray, vectors: Vectors) -> FloatArray:
    """Encode (B, S, S, 3) pixels with learned vectors in PyTorch; return (B, E) features."""
    device = backbone.device
    tensors = PromptVectors(
        context=None if vectors.context is None else torch.from_numpy(vectors.context).to(device),
        deeper=tuple(torch.from_numpy(own).to(device) for own in vectors.deeper),
        keys_values=tuple(torch.from_numpy(own).to(device) for own in vectors.keys_values),
    )
    with torch.inference_mode():
        normalized = backbone.normalize(torch.from_numpy(pixels).to(device))
        return backbone.image_tower(normalized, tensors).cpu().numpy()  # type: ignore[no-any-return]


def every_kind(layers: int, width: int, rng: np.random.Generator) -> Iterator[Vectors]:
    """Generate vectors of every kind: shallow, of some and of all blocks, ragged rows, none."""

    def vectors(count: int) -> FloatArray:
        return (rng.standard_normal((count, width)) * _SCALE).astype(np.float32)

    yield PromptVectors(context=vectors(3))  # shallow VPT
    yield PromptVectors(context=vectors(2), deeper=tuple(vectors(2) for _ in range(layers - 1)))
    some = PromptVectors(context=vectors(4), deeper=tuple(vectors(4) for _ in range(layers // 2)))
    yield some  # MaPLe
    ragged = tuple(vectors(block % 3) for block in range(layers))
    yield PromptVectors(keys_values=ragged)  # ADAPT
    yield replace(some, keys_values=ragged)
    yield PromptVectors()
