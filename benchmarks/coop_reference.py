"""CoOp's training step as in its authors' code: the reference for exactness and speed.

Every step encodes its images with the image tower and all class names with the full text tower,
padded to the context length (77 tokens). Written for open_clip after CoOp's trainers/coop.py; it
shares no code with prompt_serve's fast path.
"""

from collections.abc import Sequence
from typing import cast

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F


class CoopReference:
    """Forward pass of CoOp with one context for all classes, class name at the end."""

    def __init__(
        self, clip: open_clip.CLIP, class_names: Sequence[str], template: str, n_ctx: int
    ) -> None:
        self.clip = clip
        tokenizer = open_clip.SimpleTokenizer(context_length=clip.context_length)
        texts = [template.format(name.replace("_", " ")) for name in class_names]
        self.ids: Tensor = tokenizer(texts)  # (C, 77)
        with torch.no_grad():
            embedded = clip.token_embedding(self.ids)
        self.prefix, self.suffix = embedded[:, :1], embedded[:, 1 + n_ctx :]
        self.words = embedded[0, 1 : 1 + n_ctx].clone()  # (M, D)

    def class_features(self, context: Tensor) -> Tensor:
        """Return class features (C, E) of unit length for a context (M, D)."""
        shared = context.expand(len(self.ids), -1, -1)
        x = torch.cat([self.prefix, shared, self.suffix], dim=1) + self.clip.positional_embedding
        x = self.clip.transformer(x, attn_mask=self.clip.attn_mask)
        x = self.clip.ln_final(x)
        at_eot = x[torch.arange(len(x)), self.ids.argmax(dim=-1)]
        return F.normalize(at_eot @ cast(Tensor, self.clip.text_projection), dim=-1)

    def loss(self, context: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy on normalized images (B, 3, S, S)."""
        with torch.no_grad():
            image_features = F.normalize(self.clip.visual(images), dim=-1)
        return self.loss_of_features(context, image_features, labels)

    def loss_of_features(self, context: Tensor, image_features: Tensor, labels: Tensor) -> Tensor:
        logits = self.clip.logit_scale.exp() * image_features @ self.class_features(context).T
        return F.cross_entropy(logits, labels)
