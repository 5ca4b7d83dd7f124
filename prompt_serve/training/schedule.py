"""Learning rate of every epoch, in closed form."""

import math

WARM_UP_LEARNING_RATE = 1e-5


def learning_rate_at(epoch: int, *, base: float, epochs: int) -> float:
    """Return the learning rate of CoOp's schedule: one constant warm-up epoch, then a cosine.

    ``lr(0) = 1e-5`` and ``lr(e) = base / 2 * (1 + cos(pi * (e - 1) / T))`` with T = ``epochs``.
    Dassl computes it recursively, which fails when two schedulers share an optimizer; this form
    does not. It changes per epoch, not per step, and never reaches zero.

    Args:
        epoch: from 0 to ``epochs`` - 1.
        base: the requested learning rate.
        epochs: T, of the whole run.
    """
    if epoch == 0:
        return min(WARM_UP_LEARNING_RATE, base)
    return 0.5 * base * (1 + math.cos(math.pi * (epoch - 1) / epochs))
