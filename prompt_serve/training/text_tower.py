"""CLIP's causal text tower, exactly and fast: the shared prefix once, nothing after EOT.

Position i of a causal tower sees positions <= i only. So keys and values of what all classes share
in front (SOS and the context) are computed once, with batch 1, and every class attends to them;
and whatever would stand after EOT is left out. The numbers are those of the padded tower up to
float32 rounding; the work for 100 classes is about a tenth. The backward pass sums over the
classes into the prefix by itself.
"""

from typing import cast

import torch
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_serve.assembly import SequencePlan
from prompt_serve.errors import BackboneUnsupported


class TextTower(nn.Module):
    """The text tower of an open_clip CLIP, reading assembled sequences instead of token ids.

    Args:
        clip: its parameters are shared, not copied.

    Raises:
        BackboneUnsupported: the tower pools otherwise than at EOT, or has attention blocks that
            this module does not know.
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        blocks = list(clip.transformer.resblocks)
        strangers = {type(b).__name__ for b in blocks if not isinstance(b, ResidualAttentionBlock)}
        if strangers:
            raise BackboneUnsupported(
                f"The text tower has blocks of type {', '.join(sorted(strangers))}; "
                f"only open_clip's ResidualAttentionBlock can be prompted and exported."
            )
        if clip.text_pool_type != "argmax":
            raise BackboneUnsupported(
                f"The text tower pools by {clip.text_pool_type!r}; only towers that take the "
                f"features at the end-of-text token ('argmax') can be prompted and exported."
            )
        self.blocks = nn.ModuleList(blocks)
        self.ln_final = clip.ln_final
        self.positional_embedding = clip.positional_embedding
        self.projection = clip.text_projection
        self.causal = clip.attn_mask is not None

    def forward(self, prefix: Tensor, suffix: Tensor, eot: Tensor) -> Tensor:
        """Features of C sequences.

        Args:
            prefix: (P, D) vectors that all sequences start with, P >= 1.
            suffix: (C, S, D) what follows in each.
            eot: (C,) int64, position of end-of-text within the suffix.

        Returns:
            (C, E) class features of unit length.
        """
        p, s = prefix.shape[0], suffix.shape[1]
        head = (prefix + self.positional_embedding[:p]).unsqueeze(0)
        tail = suffix + self.positional_embedding[p : p + s]
        if self.causal:
            tail = self._causal(head, tail)
        else:
            tail = self._full(head, tail)
        # One row a class is all that is needed from here on.
        last = tail[torch.arange(tail.shape[0], device=tail.device), eot]
        return F.normalize(self._project(self.ln_final(last)), dim=-1)

    def _causal(self, head: Tensor, tail: Tensor) -> Tensor:
        p, s = head.shape[1], tail.shape[1]
        steps = torch.arange(p + s, device=tail.device)
        visible = steps.unsqueeze(0) <= steps.unsqueeze(1)  # (P+S, P+S), row attends to column
        for module in self.blocks:
            block = cast(ResidualAttentionBlock, module)
            head_q, head_k, head_v = _heads(block, head)
            tail_q, tail_k, tail_v = _heads(block, tail)
            c = tail.shape[0]
            keys = torch.cat([head_k.expand(c, -1, -1, -1), tail_k], dim=2)
            values = torch.cat([head_v.expand(c, -1, -1, -1), tail_v], dim=2)
            head = _after_attention(block, head, head_q, head_k, head_v, visible[:p, :p])
            tail = _after_attention(block, tail, tail_q, keys, values, visible[p:])
        return tail

    def _full(self, head: Tensor, tail: Tensor) -> Tensor:
        """For towers without a causal mask: every position sees all, so nothing can be shared."""
        x = torch.cat([head.expand(tail.shape[0], -1, -1), tail], dim=1)
        for module in self.blocks:
            block = cast(ResidualAttentionBlock, module)
            q, k, v = _heads(block, x)
            x = _after_attention(block, x, q, k, v, None)
        return x[:, head.shape[1] :]

    def _project(self, x: Tensor) -> Tensor:
        if self.projection is None:
            return x
        if isinstance(self.projection, nn.Linear):
            return cast(Tensor, self.projection(x))
        return x @ cast(Tensor, self.projection)


def fill_plan(
    plan: SequencePlan, token_embedding: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Put vectors in the places of a plan: the torch twin of ``assembly.assemble``.

    Args:
        plan: what stands where.
        token_embedding: (V, D) of the backbone.
        context: (M, D), or (C, M, D) where each class has its own; gradients flow into it.

    Returns:
        prefix (P, D), suffix (C, S, D) and eot (C,), the inputs of ``TextTower``.
    """
    return PlanVectors(plan, token_embedding)(context)


class PlanVectors:
    """A plan with its words looked up once, to be filled with a new context at every step."""

    def __init__(self, plan: SequencePlan, token_embedding: Tensor) -> None:
        device = token_embedding.device
        self._prefix = _Places(torch.from_numpy(plan.prefix).to(device), token_embedding)
        self._suffix = _Places(torch.from_numpy(plan.suffix).to(device), token_embedding)
        self._eot = torch.from_numpy(plan.eot).to(device)

    def __call__(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return self._prefix.fill(context), self._suffix.fill(context), self._eot


class _Places:
    def __init__(self, places: Tensor, token_embedding: Tensor) -> None:
        self.words = token_embedding[places.clamp(min=0)]
        self.learned = (places < 0).unsqueeze(-1)
        self.index = (-1 - places).clamp(min=0)  # ~places, for places that hold a context vector
        self.has_learned = bool(self.learned.any())

    def fill(self, context: Tensor | None) -> Tensor:
        if context is None or not self.has_learned:
            return self.words
        if context.ndim == 3:
            index = self.index.unsqueeze(-1).expand(-1, -1, context.shape[-1])
            vectors = context.gather(1, index)
        else:
            vectors = context[self.index]
        return torch.where(self.learned, vectors, self.words)


def _heads(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (N, heads, T, D / heads) of x (N, T, D), layer norm applied."""
    attention = block.attn
    projected = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    n, t, _ = x.shape
    split = projected.view(n, t, 3, attention.num_heads, attention.head_dim)
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _after_attention(
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
