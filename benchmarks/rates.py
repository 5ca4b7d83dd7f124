"""Images per second of a function that encodes one batch."""

import statistics
import time
from collections.abc import Callable


def images_per_s(work: Callable[[], object], images: int, seconds: float) -> tuple[float, float]:
    """Return the overall images/s and the median milliseconds per batch."""
    times = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return images * len(times) / sum(times), statistics.median(times) * 1e3
