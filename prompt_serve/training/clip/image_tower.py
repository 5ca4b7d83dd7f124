"""CLIP's vision transformer with learned vectors: prompts in the sequence, keys and values.

Without learned vectors it computes the same as ``clip.visual``. A tower that averages its patches
(``pool_type`` "avg") averages the patches alone; the learned vectors influence the patches, but are
not part of the mean ("Image-pool" of VPT, arXiv 2203.12119, section 4.3). So the mean is taken over
as many rows as the tower was trained with.
"""

from typing import cast

import torch
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_serve.errors import BackboneUnsupported, PromptFileInvalid, counted
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.clip.attention import after_attention, heads_of, keys_values_of

NO_VECTORS: PromptVectors[Tensor] = PromptVectors()
POOLS = ("tok", "avg")  # class token, or mean of the patches
TEXT_INSTEAD = "On this backbone, train a text prompt: method 'dip' or 'coop'."


class ImageTower(nn.Module):
    """Image tower of an open_clip CLIP that takes learned vectors beside the pixels.

    Args:
        clip: its parameters are shared, not copied.

    Raises:
        BackboneUnsupported: the image tower is not a plain vision transformer.
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        visual = clip.visual
        if not isinstance(visual, VisionTransformer):
            raise BackboneUnsupported(
                f"The image tower is a {type(visual).__name__}; prompts for the image branch need "
                f"a vision transformer (ViT), such as the backbone 'embedded-vit' or ViT-B-16. "
                f"{TEXT_INSTEAD}"
            )
        blocks = list(visual.transformer.resblocks)
        unknown = {type(b).__name__ for b in blocks if not isinstance(b, ResidualAttentionBlock)}
        fault = f"blocks of type {', '.join(sorted(unknown))}" if unknown else ""
        if visual.attn_pool is not None:
            fault = "an attention pool"
        elif visual.pool_type not in POOLS:
            fault = f"tokens that it pools by {visual.pool_type!r}"
        if fault:
            raise BackboneUnsupported(
                f"The image tower has {fault}; prompts for the image branch need a plain vision "
                f"transformer (ViT), such as that of 'embedded-vit' or ViT-B-16. {TEXT_INSTEAD}"
            )
        self.visual = visual

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.visual.transformer.resblocks)

    @property
    def width(self) -> int:
        """Width D of the tower."""
        return int(self.visual.conv1.out_channels)

    def forward(self, pixels: Tensor, vectors: PromptVectors[Tensor] = NO_VECTORS) -> Tensor:
        """Encode B images.

        Args:
            pixels: (B, 3, S, S), normalized (``Backbone.normalize``).
            vectors: of the image branch. ``context`` is appended to the patches, without a
                position, before ``ln_pre``; ``deeper`` replaces it at later blocks (MaPLe).

        Returns:
            (B, E) image features of unit length, float32.

        Raises:
            PromptFileInvalid: the vectors do not fit the tower.
        """
        self._check(vectors)
        x = self._embedded(pixels, vectors.context)  # (B, T, D)
        for index, module in enumerate(self.visual.transformer.resblocks):
            block = cast(ResidualAttentionBlock, module)
            if 1 <= index <= len(vectors.deeper):
                own = vectors.deeper[index - 1]
                x = torch.cat([x[:, : -len(own)], own.expand(x.shape[0], -1, -1)], dim=1)
            q, k, v = heads_of(block, x)
            if vectors.keys_values and len(vectors.keys_values[index]):
                own_k, own_v = keys_values_of(block, vectors.keys_values[index])
                k = torch.cat([own_k.expand(x.shape[0], -1, -1, -1), k], dim=2)
                v = torch.cat([own_v.expand(x.shape[0], -1, -1, -1), v], dim=2)
            x = after_attention(block, x, q, k, v, None)
        if vectors.context is not None:
            x = x[:, : -len(vectors.context)]  # (B, 1 + patches, D)
        pooled, _ = self.visual._pool(x)
        if self.visual.proj is not None:
            pooled = pooled @ self.visual.proj
        return F.normalize(pooled.float(), dim=-1)

    def _embedded(self, pixels: Tensor, context: Tensor | None) -> Tensor:
        """Return the input (B, T, D) of the first block; T = 1 + patches + M."""
        visual = self.visual
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)  # (B, patches, D)
        start = visual.class_embedding.expand(patches.shape[0], 1, -1)
        x = torch.cat([start, patches], dim=1) + visual.positional_embedding
        if context is not None:
            x = torch.cat([x, context.expand(x.shape[0], -1, -1)], dim=1)
        return cast(Tensor, visual.ln_pre(x))

    def _check(self, vectors: PromptVectors[Tensor]) -> None:
        given = [vectors.context] if vectors.context is not None else []
        widths = {t.shape[-1] for t in (*given, *vectors.deeper, *vectors.keys_values)}
        if (
            widths - {self.width}
            or len(vectors.deeper) >= self.layers
            or len(vectors.keys_values) not in (0, self.layers)
        ):
            raise PromptFileInvalid(
                f"The image branch has vectors {sorted(widths)} wide for "
                f"{counted(1 + len(vectors.deeper), 'block')}, and keys and values for "
                f"{len(vectors.keys_values)}; the image tower has "
                f"{counted(self.layers, 'block')} and is {self.width} wide."
            )
