"""An open_clip attention block in two steps, to add learned keys and values between them."""

from typing import cast

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor
from torch.nn import functional as F


def heads_of(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (N, heads, T, D / heads) of x (N, T, D), after layer norm."""
    return split_heads(block, projected(block, x))


def projected(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Return queries, keys and values (..., 3 D) of x (..., D), after layer norm."""
    return F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)


def split_heads(block: ResidualAttentionBlock, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (N, heads, T, D / heads), from (N, T, 3 D)."""
    attention = block.attn
    n, t, _ = joined.shape
    split = joined.view(n, t, 3, attention.num_heads, attention.head_dim)
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, T, D / heads) each
    return q, k, v


def keys_values_of(block: ResidualAttentionBlock, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values (1, heads, n, D / heads) of learned rows (n, D).

    The block's layer norm is applied to them as to the tokens (ADAPT), so their scale does not
    matter.
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
    """Run the rest of a block: attention, output projection, residual, MLP, residual.

    Args:
        block: open_clip block.
        x: (N, T, D) input of the block.
        q: (N, heads, T, D / heads).
        k: (N, heads, T', D / heads), learned keys included.
        v: as ``k``.
        visible: (T, T') True where a query sees a key; None: everywhere.
    """
    return after_heads(block, x, attended(q, k, v, visible))


def attended(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Return the joined heads (N, T, D) of an attention; arguments as in ``after_attention``."""
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    n, h, t, width = heads.shape
    return heads.transpose(1, 2).reshape(n, t, h * width)


def after_heads(block: ResidualAttentionBlock, x: Tensor, joined: Tensor) -> Tensor:
    """Run what follows an attention, from the block's input and the joined heads (..., D)."""
    x = x + block.ls_1(block.attn.out_proj(joined))
    return cast(Tensor, x + block.ls_2(block.mlp(block.ln_2(x))))
