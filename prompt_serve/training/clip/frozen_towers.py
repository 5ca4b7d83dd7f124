"""Frozen towers in the precision of a training run."""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.clip.image_tower import ImageTower
from prompt_serve.training.clip.text_tower import PlanVectors, TextTower
from prompt_serve.training.config import TowerPrecision

DTYPES: dict[TowerPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
Module = TypeVar("Module", bound=nn.Module)


class FrozenTowers:
    """Both towers of a backbone, with float32 vectors as input and float32 features as output.

    In fp32 the weights are shared with the backbone; otherwise they are rounded copies.
    """

    def __init__(self, backbone: Backbone, precision: TowerPrecision = "fp32") -> None:
        self.backbone = backbone
        self.dtype = DTYPES[precision]

    @cached_property
    def text(self) -> TextTower:
        return self._rounded(self.backbone.text_tower)

    @cached_property
    def image(self) -> ImageTower:
        """Image tower; raises BackboneUnsupported where it cannot be prompted."""
        return self._rounded(self.backbone.image_tower)

    def class_features(self, plan: PlanVectors, vectors: PromptVectors[Tensor]) -> Tensor:
        """Encode the sequences of a plan with a text branch; return (C, E) of unit length."""
        return self._text_features(plan, *plan(vectors.context), vectors)

    def stacked_class_features(
        self, plan: PlanVectors, texts: Sequence[PromptVectors[Tensor]]
    ) -> Tensor:
        """Encode R text branches of one shape in one pass; return (R, C, E), float32.

        Args:
            plan: sequences of the class names, shared by all branches.
            texts: R text branches without keys and values.
        """
        sequences = [plan(text.context) for text in texts]
        suffixes = [suffix for _, suffix, _ in sequences]
        # Without learned vectors after the prefix, all branches share one suffix.
        shared = all(suffix is suffixes[0] for suffix in suffixes)
        return self._text_features(
            plan,
            torch.stack([prefix for prefix, _, _ in sequences]),  # (R, P, D)
            suffixes[0] if shared else torch.stack(suffixes),
            sequences[0][2],
            PromptVectors(
                deeper=tuple(
                    torch.stack(blocks)
                    for blocks in zip(*(text.deeper for text in texts), strict=True)
                )
            ),
        )

    def _text_features(
        self,
        plan: PlanVectors,
        prefix: Tensor,
        suffix: Tensor,
        eot: Tensor,
        vectors: PromptVectors[Tensor],
    ) -> Tensor:
        features: Tensor = self.text(
            prefix.to(self.dtype),
            suffix.to(self.dtype),
            eot,
            self._cast(vectors.deeper),
            self._cast(vectors.keys_values),
            rows=plan.rows,
        )
        return features

    def image_features(self, pixels: Tensor, vectors: PromptVectors[Tensor]) -> Tensor:
        """Encode (B, S, S, 3) uint8 pixels; return (B, E) of unit length, float32."""
        normalized = self.backbone.normalize(pixels.to(self.backbone.device)).to(self.dtype)
        context = vectors.context
        features: Tensor = self.image(
            normalized,
            PromptVectors(
                context=None if context is None else context.to(self.dtype),
                deeper=self._cast(vectors.deeper),
                keys_values=self._cast(vectors.keys_values),
            ),
        )
        return features

    def _cast(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.dtype) for tensor in tensors)

    def _rounded(self, tower: Module) -> Module:
        if self.dtype == torch.float32:
            return tower
        return copy.deepcopy(tower).to(self.dtype)
