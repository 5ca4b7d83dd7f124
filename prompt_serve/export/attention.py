"""Export the self-attention of image transformers as one ONNX operator.

By default ``nn.MultiheadAttention`` is exported as about twenty operators, a third of them copies.
ONNX Runtime's ``MultiHeadAttention`` computes the same in one operator, on the CPU and on CUDA,
without ever materializing the attention matrix.
"""

import copy
from typing import cast

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn


class ExportedAttention(nn.Module):
    """Replacement for ``nn.MultiheadAttention`` during the export. It cannot be run in PyTorch."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        weights = attention.in_proj_weight.chunk(3)
        biases = attention.in_proj_bias.chunk(3)
        self.query, self.key, self.value = map(_linear, weights, biases)
        self.out_proj = attention.out_proj

    def forward(
        self, q_x: Tensor, k_x: Tensor, v_x: Tensor, *, need_weights: bool, attn_mask: None
    ) -> tuple[Tensor, None]:
        return self.attend(self.query(q_x), self.key(k_x), self.value(v_x)), None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        """Attend with projected queries (B, T, D) to keys and values (B, T', D), and project.

        ``seen`` (B, T') int32 is 1 where a key is seen, 0 where it is padding; None: everywhere.
        """
        inputs = (q, k, v) if seen is None else (q, k, v, None, seen)
        attended = torch.onnx.ops.symbolic(  # (B, T, D)
            "com.microsoft::MultiHeadAttention",
            inputs,
            {"num_heads": self.heads},
            dtype=q.dtype,
            shape=q.shape,
            version=1,
        )
        return cast(Tensor, self.out_proj(attended))


def with_exported_attention(tower: nn.Module) -> nn.Module:
    """Copy an image tower with every plain self-attention replaced. The copy shares the weights."""
    shared = {id(tensor): tensor for tensor in (*tower.parameters(), *tower.buffers())}
    copied = copy.deepcopy(tower, cast("dict[int, object]", shared))
    for module in copied.modules():
        if isinstance(module, ResidualAttentionBlock) and _is_plain(module.attn):
            module.attn = ExportedAttention(module.attn)
    return copied


def _is_plain(attention: nn.Module) -> bool:
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention.batch_first
        and attention.in_proj_weight is not None  # one width for queries, keys and values
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
