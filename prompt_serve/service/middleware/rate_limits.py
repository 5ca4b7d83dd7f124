"""Quotas of keys over all workers of a service: requests and images per second, concurrency.

Each rate is a bucket that fills at that rate up to one second's worth. A request with more images
than the bucket holds is admitted when it is full, and overdraws it: the next one waits for as long
as these images take.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from prompt_serve.errors import QuotaExceeded
from prompt_serve.service.middleware.shared_usage import SharedUsage
from prompt_serve.service.permissions import Quota

_BUSY_RETRY_S = 1.0
_ROUNDING = 1e-9

RateName = Literal["requests", "images"]
_LEVELS: dict[RateName, int] = {"requests": 0, "images": 1}  # of a slot


@dataclass
class _Bucket:
    rate: float  # per second
    level: float
    filled_at: float

    @property
    def capacity(self) -> float:
        return max(1.0, self.rate)

    def fill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + self.rate * (now - self.filled_at))
        self.filled_at = now

    def wait_s(self, amount: int) -> float:
        """Return the seconds until so much is admitted."""
        missing = min(amount, self.capacity) - self.level
        return missing / self.rate if missing > _ROUNDING else 0.0

    def headers(self, name: str) -> tuple[str, str]:
        """Return the items of RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit)."""
        left, reset = max(0, math.floor(self.level)), math.ceil(max(1.0, self.wait_s(1)))
        window_s = math.ceil(self.capacity / self.rate)
        return (
            f'"{name}";q={math.floor(self.capacity)};w={window_s}',
            f'"{name}";r={left};t={reset}',
        )


class RateLimits:
    """Buckets and running requests of all keys, by name, over all workers. For the event loop; not
    thread-safe.

    Args:
        clock: monotonic clock of the machine, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    @cached_property
    def _usage(self) -> SharedUsage:
        return SharedUsage()  # not before a key has a limit

    @contextmanager
    def request(self, key: str, quota: Quota) -> Iterator[None]:
        """Count a request of a key while it is answered.

        Raises:
            QuotaExceeded: too many at once, or per second.
        """
        if quota.concurrency is None:
            self.take(key, quota, "requests", 1)
            yield
            return
        with self._usage.lock:
            slot = self._usage.slot(key)
            running = self._usage.running(slot, quota.concurrency)
            if running >= quota.concurrency:
                raise QuotaExceeded(
                    f"Key {key!r} has {running} requests in progress; its limit is "
                    f"{quota.concurrency}. Wait for their answers.",
                    quota="concurrency",
                    limit=quota.concurrency,
                    retry_after_s=_BUSY_RETRY_S,
                )
            if quota.requests_per_s is not None:
                self._take(slot, key, quota.requests_per_s, "requests", 1)
            self._usage.add_running(slot, 1)
        try:
            yield
        finally:
            self._usage.add_running(slot, -1)  # its slot cannot become another key's meanwhile

    def take(self, key: str, quota: Quota, name: RateName, amount: int) -> None:
        """Take requests or images from their bucket, if there is a limit.

        Raises:
            QuotaExceeded: the bucket does not hold so much.
        """
        rate = _rates(quota)[name]
        if rate is not None:
            with self._usage.lock:
                self._take(self._usage.slot(key), key, rate, name, amount)

    def headers(self, key: str, quota: Quota) -> dict[str, str]:
        """Return the RateLimit headers of an answer; none if the key has no rates."""
        rates = {name: rate for name, rate in _rates(quota).items() if rate is not None}
        if not rates:
            return {}
        with self._usage.lock:
            slot = self._usage.slot(key)
            buckets = {name: self._bucket(slot, name, rate) for name, rate in rates.items()}
        items = [bucket.headers(name) for name, bucket in buckets.items()]
        policies, levels = zip(*items, strict=True)
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(levels)}

    def _take(self, slot: int, key: str, rate: float, name: RateName, amount: int) -> None:
        bucket = self._bucket(slot, name, rate)
        if wait_s := bucket.wait_s(amount):
            raise QuotaExceeded(
                f"Key {key!r} may send {rate:g} {name} per second. Retry after {wait_s:.3f} s.",
                quota=f"{name}_per_s",
                limit=rate,
                retry_after_s=wait_s,
            )
        left = bucket.level - amount
        self._usage.set_level(slot, _LEVELS[name], left, bucket.filled_at)

    def _bucket(self, slot: int, name: RateName, rate: float) -> _Bucket:
        """Return a bucket, filled up to now."""
        bucket = _Bucket(rate, *self._usage.level(slot, _LEVELS[name]))
        bucket.fill(self._clock())
        return bucket


def _rates(quota: Quota) -> dict[RateName, float | None]:
    return {"requests": quota.requests_per_s, "images": quota.images_per_s}
