"""Text tower with a fixed list of inputs, as an ONNX graph needs it.

It computes the same as ``training.clip.text_tower``, which takes lists of vectors of any length. A
graph takes arrays with a row for each block and position, and flags for the rows that are used
(``prompts.text_inputs``). Unused rows of keys and values are masked before the softmax, so that
their weight is exactly zero.
"""

from typing import cast

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_serve.training.clip.attention import after_attention, heads_of, keys_values_of
from prompt_serve.training.clip.text_tower import TextTower


class TextEncoder(nn.Module):
    """Text tower from the inputs of the text graph (see ``bundle``) to class features (C, E)."""

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
        head = (prefix + tower.positional_embedding[:p]).unsqueeze(0)  # (1, P, D)
        tail = suffix + tower.positional_embedding[p : p + s]  # (C, S, D)
        if not tower.causal:  # every position attends to all, so nothing can be shared
            head = head.expand(c, -1, -1)  # (C, P, D)
        visible = self._visible(p + s)
        for index, module in enumerate(tower.blocks):
            block = cast(ResidualAttentionBlock, module)
            head = torch.where(deeper_used[index].unsqueeze(-1), deeper[index], head)
            head_q, head_k, head_v = heads_of(block, head)  # (1 or C, heads, P, D / heads)
            tail_q, tail_k, tail_v = heads_of(block, tail)  # (C, heads, S, D / heads)
            own_k, own_v = keys_values_of(block, keys_values[index])  # (1, heads, K, D / heads)
            used = keys_values_used[index].unsqueeze(0)
            seen = torch.cat([used.expand(visible.shape[0], -1), visible], dim=1)  # (T, K + T)
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
        last = tail[torch.arange(c, device=tail.device), eot]  # (C, D)
        return F.normalize(tower._project(tower.ln_final(last)).float(), dim=-1)

    def _visible(self, length: int) -> Tensor:
        """Return the attention mask (T, T), T = P + S: True where row attends to column."""
        device = self.tower.positional_embedding.device
        if not self.tower.causal:
            return torch.ones(length, length, dtype=torch.bool, device=device)
        steps = torch.arange(length, device=device)
        return steps.unsqueeze(0) <= steps.unsqueeze(1)


def _of_each(heads: Tensor, c: int) -> Tensor:
    """Expand (1, heads, T, D / heads) to (C, heads, T, D / heads), without a copy."""
    return heads.expand(c, -1, -1, -1)
