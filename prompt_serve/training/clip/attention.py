"""The halves of an open_clip attention block, so that learned keys and values can come between."""

from typing import cast

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor
from torch.nn import functional as F


def heads_of(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (N, heads, T, D / heads) of x (N, T, D), layer norm applied."""
    attention = block.attn
    projected = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    n, t, _ = x.shape
    split = projected.view(n, t, 3, attention.num_heads, attention.head_dim)
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def keys_values_of(block: ResidualAttentionBlock, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (1, heads, n, D / heads) of learned rows (n, D).

    The layer norm of the block is applied to them as to the tokens (ADAPT), so their scale does
    not matter.
    """
    _, k, v = heads_of(block, rows.unsqueeze(0))
    return k, v


def after_attention(
    block: ResidualAttentionBlock,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
) -> Tensor:
    """The rest of a block: attention over (k, v), output projection, residual, MLP, residual."""
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    n, heads, t, width = attended.shape
    joined = attended.transpose(1, 2).reshape(n, t, heads * width)
    x = x + block.ls_1(block.attn.out_proj(joined))
    return cast(Tensor, x + block.ls_2(block.mlp(block.ln_2(x))))
