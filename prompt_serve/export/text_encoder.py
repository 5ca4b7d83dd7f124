"""The text tower with a fixed list of inputs, as a graph wants it.

It computes what ``training.text_tower`` computes; where that takes lists of vectors, which may be
long, short or empty, this takes arrays with a row for each block and place, and switches that say
which rows count (``text_inputs``). A switched-off row of keys and values is masked before the
softmax, so that its weight is exactly zero.
"""

from typing import cast

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_serve.training.clip.attention import after_attention, heads_of, keys_values_of
from prompt_serve.training.clip.text_tower import TextTower


class TextEncoder(nn.Module):
    """Inputs of the text graph (see ``bundle``) -> class features (C, E) of unit length."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(
        self,
        prefix: Tensor,
        suffix: Tensor,
        eot: Tensor,
        deeper: Tensor,
        deeper_used: Tensor,
        keys_values: Tensor,
        keys_values_used: Tensor,
    ) -> Tensor:
        tower, p, c, s = self.tower, prefix.shape[0], suffix.shape[0], suffix.shape[1]
        head = (prefix + tower.positional_embedding[:p]).unsqueeze(0)
        tail = suffix + tower.positional_embedding[p : p + s]
        if not tower.causal:  # every position sees all, so nothing can be shared
            head = head.expand(c, -1, -1)
        visible = self._visible(p + s)
        for index, module in enumerate(tower.blocks):
            block = cast(ResidualAttentionBlock, module)
            head = torch.where(deeper_used[index].unsqueeze(-1), deeper[index], head)
            head_q, head_k, head_v = heads_of(block, head)
            tail_q, tail_k, tail_v = heads_of(block, tail)
            own_k, own_v = keys_values_of(block, keys_values[index])
            used = keys_values_used[index].unsqueeze(0)
            seen = torch.cat([used.expand(visible.shape[0], -1), visible], dim=1)
            own = own_k.shape[2]
            keys = torch.cat([_of_each(own_k, c), _of_each(head_k, c), tail_k], dim=2)
            values = torch.cat([_of_each(own_v, c), _of_each(head_v, c), tail_v], dim=2)
            if tower.causal:
                head_k, head_v = torch.cat([own_k, head_k], 2), torch.cat([own_v, head_v], 2)
                head_seen = seen[:p, : own + p]
            else:
                head_k, head_v, head_seen = keys, values, seen[:p]
            head = after_attention(block, head, head_q, head_k, head_v, head_seen)
            tail = after_attention(block, tail, tail_q, keys, values, seen[p:])
        last = tail[torch.arange(c, device=tail.device), eot]
        return F.normalize(tower._project(tower.ln_final(last)).float(), dim=-1)

    def _visible(self, length: int) -> Tensor:
        """(T, T), row attends to column."""
        device = self.tower.positional_embedding.device
        if not self.tower.causal:
            return torch.ones(length, length, dtype=torch.bool, device=device)
        steps = torch.arange(length, device=device)
        return steps.unsqueeze(0) <= steps.unsqueeze(1)


def _of_each(heads: Tensor, c: int) -> Tensor:
    """(1, heads, T, D / heads), or C of them, for each of C classes."""
    return heads.expand(c, -1, -1, -1)
