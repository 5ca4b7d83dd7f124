"""Rate of an encoder alone, in a process without a server."""

import json
import time
from collections.abc import Callable

import numpy as np

BATCH = 8


def print_alone(encode: Callable[[], np.ndarray], seconds: float) -> None:
    """Print the images/s of ``encode``, which takes one batch, and its features, as JSON."""
    features = encode()
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        encode()
        count += BATCH
    print(json.dumps({"images_per_s": count / spent, "features": features.tolist()}))
