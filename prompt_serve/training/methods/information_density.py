"""Information density ID_k of learned vectors (DIP, arXiv 2312.10813, section 3), for the log.

With the singular values s_1 >= ... >= s_n of vectors (M, D), ``ID_k = (s_1 + ... + s_k) / sum(s)``:
the nearer to 1, the denser.
"""

import numpy as np
import torch
from torch import Tensor

from prompt_serve.training.methods.base import Contexts


def information_density(vectors: Tensor) -> tuple[float, ...]:
    """Return ID_k for k = 1..min(M, D) of vectors (M, D), or the mean over C of (C, M, D)."""
    singular = torch.linalg.svdvals(vectors.detach().float().cpu())  # (..., n)
    shares = singular.cumsum(-1) / singular.sum(-1, keepdim=True).clamp(min=1e-12)
    return tuple(round(float(s), 6) for s in shares.reshape(-1, shares.shape[-1]).mean(0))


def mean_information_density(contexts: Contexts) -> tuple[float, ...]:
    """Return the mean ID_k over the prompted blocks; of the text branch if it has vectors."""
    for branch in (contexts.text, contexts.image):
        blocks = [] if branch.context is None else [branch.context, *branch.deeper]
        blocks += [rows for rows in branch.keys_values if len(rows)]
        if blocks:
            rows = [information_density(block) for block in blocks]
            longest = max(map(len, rows))
            padded = np.array([[*row, *[1.0] * (longest - len(row))] for row in rows])
            return tuple(round(float(share), 6) for share in padded.mean(axis=0))
    return ()
