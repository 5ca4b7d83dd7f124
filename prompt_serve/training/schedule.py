"""The learning rate of every epoch, as one closed formula."""

import math

WARM_UP_LEARNING_RATE = 1e-5


def learning_rate_at(epoch: int, *, base: float, epochs: int) -> float:
    """CoOp's schedule: one constant warm-up epoch, then a cosine.

    ``lr(0) = 1e-5`` and ``lr(e) = base / 2 * (1 + cos(pi * (e - 1) / T))`` with T = ``epochs``.
    Dassl computes it recursively, which goes wrong when two schedulers share an optimizer; this
    form cannot. It is set once an epoch, not once a step, and never reaches zero.

    Args:
        epoch: from 0 to ``epochs`` - 1.
        base: the learning rate asked for.
        epochs: T, of the whole run.
    """
    if epoch == 0:
        return min(WARM_UP_LEARNING_RATE, base)
    return 0.5 * base * (1 + math.cos(math.pi * (epoch - 1) / epochs))
