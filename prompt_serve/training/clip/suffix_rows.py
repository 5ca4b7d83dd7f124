"""Rows of one matrix for the tokens of C suffixes: nothing behind EOT, equal beginnings once.

Padding to the longest class name is most of what a text tower computes: of 1,000 ImageNet names,
13,000 positions are 4,164 tokens up to EOT. And in a causal tower, suffixes that begin with the
same tokens ("Boeing 737-200", "Boeing 737-300") have equal rows there. Everything but attention
works on rows alone; ``spread`` and ``gather`` lead from rows to positions and back.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.types import IntArray


@dataclass(frozen=True, kw_only=True)
class SuffixRows:
    """T rows for the C x S positions of suffixes."""

    tokens: Tensor  # (T,) int64, position c S + s of each row
    rows: Tensor  # (C, S) int64, row of each position; behind EOT, where nothing is read, 0
    eot: Tensor  # (C,) int64, position of EOT within the suffix

    @classmethod
    def build(cls, suffix: IntArray, eot: IntArray, *, share: bool) -> "SuffixRows":
        """Lay out rows for the suffixes of a plan.

        Args:
            suffix: (C, S) token ids, or indices of context vectors.
            eot: (C,) position of EOT within the suffix.
            share: suffixes that begin with the same ids share the rows of their beginning. False
                where equal ids stand for different vectors: each class has a context of its own.
        """
        c, s = suffix.shape
        rows, tokens, count = np.zeros((c, s), dtype=np.int64), [], 0
        parents = np.zeros(c, dtype=np.int64) if share else np.arange(c, dtype=np.int64)
        for position in range(s):
            classes = np.flatnonzero(eot >= position)
            begun = np.stack([parents[classes], suffix[classes, position]])  # (2, classes)
            _, first, own = np.unique(begun, axis=1, return_index=True, return_inverse=True)
            rows[classes, position] = count + own.reshape(-1)
            tokens.append(classes[first] * s + position)
            # A row stands for a beginning, so it is all that the next position must know.
            parents[classes] = rows[classes, position] if share else classes
            count += len(first)
        return cls(
            tokens=torch.from_numpy(np.concatenate(tokens)),
            rows=torch.from_numpy(rows),
            eot=torch.from_numpy(np.asarray(eot)),
        )

    @classmethod
    def of_lengths(cls, eot: Tensor, length: int) -> "SuffixRows":
        """Lay out a row for each token up to EOT; ``eot`` (C,), suffixes of ``length`` S."""
        used = torch.arange(length, device=eot.device) <= eot.unsqueeze(1)  # (C, S)
        rows = (used.flatten().cumsum(0) - 1).view_as(used)
        return cls(
            tokens=used.flatten().nonzero().squeeze(1),
            rows=rows.masked_fill(~used, 0),
            eot=eot,
        )

    def to(self, device: torch.device) -> "SuffixRows":
        return SuffixRows(
            tokens=self.tokens.to(device), rows=self.rows.to(device), eot=self.eot.to(device)
        )

    def of_runs(self, runs: int) -> "SuffixRows":
        """Return the rows of ``runs`` batches of the same suffixes, one behind the other."""
        if runs == 1:
            return self
        batch = torch.arange(runs, device=self.rows.device)
        return SuffixRows(
            tokens=(batch[:, None] * self.rows.numel() + self.tokens).flatten(),
            rows=(batch[:, None, None] * len(self.tokens) + self.rows).flatten(0, 1),
            eot=self.eot.repeat(runs),
        )

    @property
    def last(self) -> Tensor:
        """Row of each EOT (C,)."""
        return self.rows.gather(1, self.eot.unsqueeze(1)).squeeze(1)

    def spread(self, x: Tensor) -> Tensor:
        """Return the vectors (C, S, D) of all positions, from those of the rows (T, D).

        An embedding look-up, because its gradient, the sum over equal rows, has one order on every
        device.
        """
        return F.embedding(self.rows, x)

    def gather(self, x: Tensor) -> Tensor:
        """Return the vectors (T, D) of the rows, from those of all positions (C, S, D)."""
        return F.embedding(self.tokens, x.flatten(0, 1))
