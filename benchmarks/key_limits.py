"""CPU time of a request's quotas: ``python -m benchmarks.key_limits``.

Kinds of quotas in turns, in one process; then the same beside other workers of the service, which
send a thousand requests per second each for the same key.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prompt_serve.service.middleware import shared_usage
from prompt_serve.service.middleware.rate_limits import RateLimits
from prompt_serve.service.permissions import NO_LIMITS, Quota

MUCH = 1e9
QUOTAS = {
    "none": NO_LIMITS,
    "requests per second": Quota(requests_per_s=MUCH),
    "concurrency": Quota(concurrency=1000),
    "all three": Quota(requests_per_s=MUCH, images_per_s=MUCH, concurrency=1000),
}
_OTHER = "from benchmarks.key_limits import be_another_worker; be_another_worker()"


def answer(limits: RateLimits, quota: Quota) -> None:
    """Do what ``AuthMiddleware`` does for a request with an image."""
    with limits.request("key", quota):
        limits.take("key", quota, "images", 1)
        limits.headers("key", quota)


def be_another_worker() -> None:
    """Count a thousand requests per second until this process is killed."""
    limits = RateLimits()
    while True:
        answer(limits, QUOTAS["all three"])
        time.sleep(0.001)


def cpu_us(work: Callable[[], None], times: int) -> float:
    """Return the CPU time of one call in microseconds."""
    begun = time.process_time()
    for _ in range(times):
        work()
    return 1e6 * (time.process_time() - begun) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5000, help="Requests per turn.")
    parser.add_argument("--turns", type=int, default=9, help="Turns; the median counts.")
    parser.add_argument("--workers", type=int, default=4, help="Workers of the service.")
    options = parser.parse_args()
    print(
        f"{'quotas':22} {'alone':>9} {f'beside {options.workers - 1}':>9}   us of CPU per request"
    )
    with tempfile.TemporaryDirectory() as folder:
        shared_usage.prepare_file(Path(folder), options.workers)
        limits = RateLimits()
        alone = measure(limits, options.times, options.turns)
        others = [
            subprocess.Popen([sys.executable, "-c", _OTHER]) for _ in range(options.workers - 1)
        ]
        try:
            time.sleep(2)
            beside = measure(limits, options.times, options.turns)
        finally:
            for other in others:
                other.kill()
                other.wait()
    for name in QUOTAS:
        print(f"{name:22} {alone[name]:9.2f} {beside[name]:9.2f}")


def measure(limits: RateLimits, times: int, turns: int) -> dict[str, float]:
    """Return the median CPU time per request of each kind of quota, in microseconds."""
    found: dict[str, list[float]] = {name: [] for name in QUOTAS}
    for _ in range(turns):
        for name, quota in QUOTAS.items():
            found[name].append(cpu_us(partial(answer, limits, quota), times))
    return {name: statistics.median(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
