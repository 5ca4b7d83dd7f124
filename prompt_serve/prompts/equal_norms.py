"""Vectors of any length as unit class features and one scale, without changing a probability.

A score is ``x @ w_c``. One vector v added to all w_c changes the scores of an image by the same
number, x @ v, which a softmax does not see. So v is free to make the norms of all w_c + v equal:

    |w_c + v|^2 = |w_0 + v|^2    <=>    2 (w_c - w_0) @ v = |w_0|^2 - |w_c|^2

These are C - 1 linear equations in E unknowns; v is their shortest solution. Up to C = E + 1
classes it is exact unless the differences are linearly dependent; beyond, it is the least-squares
solution and the remaining differences of length are dropped.
"""

import numpy as np

from prompt_serve.types import DoubleArray, FloatArray

_SMALLEST = 1e-12  # norm of a vector, relative to the largest one; a smaller one has no direction
_RELATIVE_CUTOFF = 1e-6  # of the singular values: directions below it would blow v up


def equal_norms(vectors: DoubleArray) -> tuple[FloatArray, float]:
    """Turn class vectors into unit class features and a scale.

    Args:
        vectors: (C, E), C >= 2, not all equal.

    Returns:
        Unit rows F (C, E) and a scale s such that ``s * x @ F.T`` and ``x @ vectors.T`` have the
        same softmax for every x.
    """
    centered = vectors - vectors.mean(axis=0)
    squares = (centered**2).sum(axis=1)  # (C,)
    differences = centered[1:] - centered[0]  # (C - 1, E)
    shift = np.linalg.lstsq(differences, (squares[0] - squares[1:]) / 2, rcond=_RELATIVE_CUTOFF)[0]
    shifted = centered + shift
    norms = np.linalg.norm(shifted, axis=1, keepdims=True)
    # Relative to the largest one: numbers of a prompt file may be as small as 1e-15.
    divisors = np.maximum(norms, _SMALLEST * norms.max())
    return (shifted / divisors).astype(np.float32), float(norms.mean())
