"""CLIP's causal text tower, exactly and fast: the shared prefix once, nothing after EOT.

Position i of a causal tower sees positions <= i only. So keys and values of the prefix that all
classes share (SOS and the context) are computed once, with batch 1, and every class attends to
them; positions after EOT are left out. The features equal those of the padded tower up to float32
rounding, at about a tenth of the work for 100 classes. Autograd sums the gradients of all classes
in the prefix.
"""

from collections.abc import Sequence
from typing import cast

import torch
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_serve.errors import BackboneUnsupported, PromptFileInvalid, counted
from prompt_serve.prompts.sequences import SequencePlan
from prompt_serve.training.clip.attention import (
    after_attention,
    after_heads,
    attended,
    heads_of,
    keys_values_of,
    projected,
    split_heads,
)
from prompt_serve.training.clip.suffix_rows import SuffixRows


class TextTower(nn.Module):
    """Text tower of an open_clip CLIP that takes assembled sequences instead of token ids.

    Args:
        clip: its parameters are shared, not copied.

    Raises:
        BackboneUnsupported: the tower does not pool at EOT, or has unknown attention blocks.
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        blocks = list(clip.transformer.resblocks)
        unknown = {type(b).__name__ for b in blocks if not isinstance(b, ResidualAttentionBlock)}
        if unknown:
            raise BackboneUnsupported(
                f"The text tower has blocks of type {', '.join(sorted(unknown))}; "
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

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def forward(
        self,
        prefix: Tensor,
        suffix: Tensor,
        eot: Tensor,
        deeper: Sequence[Tensor] = (),
        keys_values: Sequence[Tensor] = (),
        *,
        rows: SuffixRows | None = None,
    ) -> Tensor:
        """Encode C sequences, or C sequences in each of R runs of a batch.

        Args:
            prefix: (P, D) vectors that all sequences start with, P >= 1; of R runs (R, P, D).
            suffix: (C, S, D) rest of each sequence; of R runs (R, C, S, D), or (C, S, D) where it
                is the same in all.
            eot: (C,) int64, position of end-of-text within the suffix.
            deeper: J - 1 tensors (M, D), of R runs (R, M, D); number j replaces positions 1 to M,
                which must be part of the prefix, at the input of block j + 1.
            keys_values: one tensor (n, D) per block, or none at all; they pass the block's layer
                norm and are seen by every position (ADAPT, equation 7). All runs share them.
            rows: suffixes that begin equally, computed once; None: each for itself.

        Returns:
            (C, E) class features of unit length; of R runs (R, C, E).

        Raises:
            PromptFileInvalid: there are vectors for more blocks than the tower has.
        """
        self._check(deeper, keys_values)
        p, s = prefix.shape[-2], suffix.shape[-2]
        head = prefix + self.positional_embedding[:p]
        tail = suffix + self.positional_embedding[p : p + s]
        if prefix.ndim == 2:
            head = head.unsqueeze(0)  # (1, P, D)
        runs = head.shape[0]
        tail = tail.expand(runs, -1, -1, -1).flatten(0, 1)  # (R C, S, D)
        if self.causal:
            rows = (rows or SuffixRows.of_lengths(eot, s)).of_runs(runs)
            last = self._causal(head, tail, rows, deeper, keys_values)
        else:
            last = self._full(head, tail, eot.repeat(runs), deeper, keys_values)
        features = F.normalize(self._project(self.ln_final(last)).float(), dim=-1)  # (R C, E)
        return features if prefix.ndim == 2 else features.view(runs, -1, features.shape[-1])

    def _check(self, deeper: Sequence[Tensor], keys_values: Sequence[Tensor]) -> None:
        if len(deeper) >= self.layers or len(keys_values) not in (0, self.layers):
            raise PromptFileInvalid(
                f"The prompt has vectors for {counted(1 + len(deeper), 'block')} and keys and "
                f"values for {len(keys_values)}; the text tower has "
                f"{counted(self.layers, 'block')}."
            )

    def _causal(
        self,
        head: Tensor,
        tail: Tensor,
        rows: SuffixRows,
        deeper: Sequence[Tensor],
        keys_values: Sequence[Tensor],
    ) -> Tensor:
        """Return the rows of EOT (R C, D), from heads (R, P, D) and tails (R C, S, D)."""
        p, s = head.shape[1], tail.shape[1]
        steps = torch.arange(p + s, device=tail.device)
        visible = steps.unsqueeze(0) <= steps.unsqueeze(1)  # (P+S, P+S), row attends to column
        tail = rows.gather(tail)  # (T, D)
        for index, module in enumerate(self.blocks):
            block = cast(ResidualAttentionBlock, module)
            head = _with_context(head, deeper, index)
            head_q, head_k, head_v = heads_of(block, head)
            tail_q, tail_k, tail_v = split_heads(block, rows.spread(projected(block, tail)))
            seen = visible
            if keys_values and len(keys_values[index]):
                own_k, own_v = keys_values_of(block, keys_values[index])
                head_k = torch.cat([_for_rows(own_k, head_k.shape[0]), head_k], 2)
                head_v = torch.cat([_for_rows(own_v, head_v.shape[0]), head_v], 2)
                seen = F.pad(visible, (len(keys_values[index]), 0), value=True)
            keys = torch.cat([_for_rows(head_k, tail_k.shape[0]), tail_k], dim=2)
            values = torch.cat([_for_rows(head_v, tail_v.shape[0]), tail_v], dim=2)
            if index + 1 < self.layers:
                columns = head_k.shape[2]
                head = after_attention(block, head, head_q, head_k, head_v, seen[:p, :columns])
                joined = attended(tail_q, keys, values, seen[p:])  # (R C, S, D)
                tail = after_heads(block, tail, rows.gather(joined))
        # Of the last block, only the rows of EOT are needed.
        chosen = torch.arange(len(rows.eot), device=tail.device)
        joined = attended(
            tail_q[chosen, :, rows.eot].unsqueeze(2),  # (R C, heads, 1, D / heads)
            keys,
            values,
            seen[p + rows.eot, None, None],  # (R C, 1, 1, P+S)
        )
        return after_heads(block, F.embedding(rows.last, tail), joined.squeeze(1))

    def _full(
        self,
        head: Tensor,
        tail: Tensor,
        eot: Tensor,
        deeper: Sequence[Tensor],
        keys_values: Sequence[Tensor],
    ) -> Tensor:
        """Run a tower without a causal mask: every position sees all, so nothing can be shared."""
        x = torch.cat([_for_rows(head, tail.shape[0]), tail], dim=1)
        for index, module in enumerate(self.blocks):
            block = cast(ResidualAttentionBlock, module)
            x = _with_context(x, deeper, index)
            q, k, v = heads_of(block, x)
            if keys_values and len(keys_values[index]):
                own_k, own_v = keys_values_of(block, keys_values[index])
                k = torch.cat([own_k.expand(x.shape[0], -1, -1, -1), k], dim=2)
                v = torch.cat([own_v.expand(x.shape[0], -1, -1, -1), v], dim=2)
            x = after_attention(block, x, q, k, v, None)
        return x[torch.arange(len(x), device=x.device), head.shape[1] + eot]

    def _project(self, x: Tensor) -> Tensor:
        if self.projection is None:
            return x
        if isinstance(self.projection, nn.Linear):
            return cast(Tensor, self.projection(x))
        return x @ cast(Tensor, self.projection)


def _with_context(x: Tensor, deeper: Sequence[Tensor], index: int) -> Tensor:
    """Return ``x`` (N, T, D) with positions 1 to M replaced, as input of block ``index``."""
    if not 1 <= index <= len(deeper):
        return x
    context = deeper[index - 1]
    rows = _for_rows(context if context.ndim == 3 else context.unsqueeze(0), x.shape[0])
    return torch.cat([x[:, :1], rows, x[:, 1 + context.shape[-2] :]], dim=1)


def _for_rows(shared: Tensor, rows: int) -> Tensor:
    """Expand (1, ...) to ``rows`` sequences, or (R, ...) to ``rows`` / R sequences per run."""
    runs, *others = shared.shape
    if runs == 1:
        return shared.expand(rows, *[-1] * len(others))
    each = rows // runs
    return shared.unsqueeze(1).expand(-1, each, *[-1] * len(others)).reshape(rows, *others)


class PlanVectors:
    """Sequences of a plan, filled with a new context at every step; words are looked up once.

    Args:
        plan: token ids and positions of the learned vectors.
        token_embedding: (V, D) of the backbone.
        class_specific: each class has a context of its own.
    """

    def __init__(
        self, plan: SequencePlan, token_embedding: Tensor, *, class_specific: bool = False
    ) -> None:
        device = token_embedding.device
        self._prefix = _Places(torch.from_numpy(plan.prefix).to(device), token_embedding)
        self._suffix = _Places(torch.from_numpy(plan.suffix).to(device), token_embedding)
        self._eot = torch.from_numpy(plan.eot).to(device)
        self.rows = SuffixRows.build(plan.suffix, plan.eot, share=not class_specific).to(device)

    def __call__(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return prefix (P, D), suffix (C, S, D) and eot (C,), the inputs of ``TextTower``.

        The torch counterpart of ``sequences.assemble``.

        Args:
            context: (M, D), or (C, M, D) where each class has its own; gradients flow into it.
                None for a plan of words alone.
        """
        return self._prefix.fill(context), self._suffix.fill(context), self._eot


class _Places:
    """Positions of a sequence: token ids >= 0, or ~index of a context vector."""

    def __init__(self, places: Tensor, token_embedding: Tensor) -> None:
        self.words = token_embedding[places.clamp(min=0)]
        self.learned = (places < 0).unsqueeze(-1)
        self.index = (-1 - places).clamp(min=0)  # ~places: index of the context vector
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
