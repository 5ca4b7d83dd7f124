"""Encoders of plain vision transformers as graphs: without learned vectors, and with them.

Both compute the same as ``training.clip.image_tower``. The attention is one operator of ONNX
Runtime (``attention``), and the last block computes only the rows that are pooled: of a class token
that is one query against all keys, a twelfth of a ViT-B/16 less.

The encoder with vectors takes those of every image apart, so that images of different tasks share a
batch. Vectors come in two kinds (``prompts.image_inputs``):

* Rows whose outputs nobody reads are keys and values only: ADAPT's, and vectors that the next block
  replaces. ``RowProjector`` projects them once, when a task is loaded.
* Rows that later blocks read stand in the sequence, behind the patches, from the block on where
  they enter: those of the last prompted block (MaPLe, IVLP, shallow VPT).

Both are padded; a mask gives padding the weight zero.
"""

from typing import cast

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_serve.export.attention import ExportedAttention


class VitEncoder(nn.Module):
    """Vision transformer from pixels (B, S, S, 3) uint8 to image features (B, E) of unit length.

    Args:
        visual: copy for the export (``attention.with_exported_attention``) of a tower that
            ``ImageTower`` takes.
        normalize: from pixels to (B, 3, S, S), the tower's input, in its precision.
    """

    def __init__(self, visual: VisionTransformer, normalize: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.normalize = normalize

    def forward(self, pixels: Tensor) -> Tensor:
        x = self._embedded(pixels)  # (B, T, D)
        *blocks, last = self._blocks()
        for block in blocks:
            x = _block(block, x, x.shape[1])
        return self._features(_block(last, x, self._pooled(x.shape[1])))

    def _blocks(self) -> list[ResidualAttentionBlock]:
        return [cast(ResidualAttentionBlock, b) for b in self.visual.transformer.resblocks]

    def _embedded(self, pixels: Tensor) -> Tensor:
        """Return the input (B, T, D) of the first block; T = 1 + patches."""
        visual = self.visual
        patches = visual.conv1(self.normalize(pixels)).flatten(2).transpose(1, 2)
        start = visual.class_embedding.expand(patches.shape[0], 1, -1)
        x = torch.cat([start, patches], dim=1) + visual.positional_embedding
        return cast(Tensor, visual.ln_pre(x))

    def _pooled(self, rows: int) -> int:
        """Return the number of rows, from the first, that are pooled: one, or all ``rows``."""
        return 1 if self.visual.pool_type == "tok" else rows

    def _features(self, x: Tensor) -> Tensor:
        """Pool (B, T, D), or (B, 1, D) of the class token, to features (B, E), float32."""
        pooled, _ = self.visual._pool(x)
        if self.visual.proj is not None:
            pooled = pooled @ self.visual.proj
        return F.normalize(pooled.float(), dim=-1)


class PromptedVitEncoder(VitEncoder):
    """The same with learned vectors, of each image its own; see ``bundle`` for the inputs."""

    def forward(  # type: ignore[override]  # a graph of its own
        self,
        pixels: Tensor,
        rows: Tensor,
        rows_block: Tensor,
        rows_used: Tensor,
        keys: Tensor,
        values: Tensor,
        keys_used: Tensor,
    ) -> Tensor:
        x = self._embedded(pixels)
        count = x.shape[1]  # T
        rows, keys, values = (tensor.to(x.dtype) for tensor in (rows, keys, values))
        everywhere = torch.ones(x.shape[:2], dtype=torch.int32, device=x.device)  # (B, T)
        x = torch.cat([x, rows], dim=1)  # (B, T + M, D)
        blocks = self._blocks()
        for index, block in enumerate(blocks):
            if index > 0:
                enters = (rows_block == index)[:, None, None]
                own = torch.where(enters, rows, x[:, count:])
                x = torch.cat([x[:, :count], own], dim=1)
            there = rows_used & (rows_block <= index).unsqueeze(1)  # (B, M)
            seen = torch.cat([everywhere, there.int(), keys_used[index].int()], dim=1)
            normed, attention = block.ln_1(x), _attention(block)
            read = normed.shape[1] if index < len(blocks) - 1 else self._pooled(count)
            attended = attention.attend(
                attention.query(normed[:, :read]),
                torch.cat([attention.key(normed), keys[index]], dim=1),  # (B, T + M + R, D)
                torch.cat([attention.value(normed), values[index]], dim=1),
                seen,
            )
            x = _after_attention(block, x[:, :read], attended)
        return self._features(x)


class RowProjector(nn.Module):
    """Vectors of one task as ``PromptedVitEncoder`` takes them, projected once.

    ``context`` (M, D) are vectors for the first block, ``rows`` (L, R, D) are rows of keys and
    values for every block, before its layer norm. Returns the context behind ``ln_pre`` (M, D), and
    keys and values (L, R, D).
    """

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, context: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = [], []
        for own, module in zip(rows, self.visual.transformer.resblocks, strict=True):
            block = cast(ResidualAttentionBlock, module)
            normed, attention = block.ln_1(own), _attention(block)
            keys.append(attention.key(normed))
            values.append(attention.value(normed))
        return self.visual.ln_pre(context), torch.stack(keys), torch.stack(values)


def _attention(block: ResidualAttentionBlock) -> ExportedAttention:
    return cast(ExportedAttention, block.attn)


def _block(block: ResidualAttentionBlock, x: Tensor, read: int) -> Tensor:
    """Run a block on x (B, T, D), and return the first ``read`` rows."""
    normed, attention = block.ln_1(x), _attention(block)
    attended = attention.attend(
        attention.query(normed[:, :read]), attention.key(normed), attention.value(normed)
    )
    return _after_attention(block, x[:, :read], attended)


def _after_attention(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """Run the rest of a block on its input and what the attention returned, projected or not."""
    x = x + block.ls_1(attended)
    return cast(Tensor, x + block.ls_2(block.mlp(block.ln_2(x))))
