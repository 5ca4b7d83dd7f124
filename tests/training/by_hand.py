"""A transformer block written out, one sequence at a time: the oracle of the prompted towers."""

from typing import Any

import torch
from torch import Tensor


def norm(x: Tensor, layer: Any) -> Tensor:
    """Layer norm of each row of x (T, D)."""
    centered = x - x.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    normed: Tensor = centered / (variance + layer.eps).sqrt() * layer.weight + layer.bias
    return normed


def block(layer: Any, x: Tensor, rows: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
    """Args:
    layer: an open_clip block.
    x: (T, D).
    rows: (n, D) that join keys and values in front.
    seen: (T, n + T), which of them each position may look at; None: all.
    """
    asking = norm(x, layer.ln_1)
    asked = asking if rows is None else torch.cat([norm(rows, layer.ln_1), asking])
    w_q, w_k, w_v = layer.attn.in_proj_weight.chunk(3)
    b_q, b_k, b_v = layer.attn.in_proj_bias.chunk(3)
    q, k, v = asking @ w_q.T + b_q, asked @ w_k.T + b_k, asked @ w_v.T + b_v
    size = x.shape[1] // layer.attn.num_heads
    heads = []
    for head in range(layer.attn.num_heads):
        own = slice(head * size, (head + 1) * size)
        weights = (q[:, own] @ k[:, own].T / size**0.5).exp()
        if seen is not None:
            weights = torch.where(seen, weights, 0.0)
        heads.append(weights / weights.sum(-1, keepdim=True) @ v[:, own])
    x = x + torch.cat(heads, -1) @ layer.attn.out_proj.weight.T + layer.attn.out_proj.bias
    hidden = norm(x, layer.ln_2) @ layer.mlp.c_fc.weight.T + layer.mlp.c_fc.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    out: Tensor = x + hidden @ layer.mlp.c_proj.weight.T + layer.mlp.c_proj.bias
    return out
