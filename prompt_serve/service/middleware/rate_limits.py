"""Quotas of keys that hold in one worker: requests and images per second, concurrency.

Each rate is a bucket that fills at that rate up to one second's worth. A request with more images
than the bucket holds is admitted when it is full, and overdraws it: the next one waits for as long
as these images take.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prompt_serve.errors import QuotaExceeded
from prompt_serve.service.permissions import Quota

_BUSY_RETRY_S = 1.0
_ROUNDING = 1e-9
_MAX_KEPT = 10_000  # keys; callers with tokens of an identity provider may be any number


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


class _Usage:
    """Use of one key in this worker."""

    def __init__(self, quota: Quota, now: float) -> None:
        self.quota = quota
        self.running = 0
        rates = {"requests": quota.requests_per_s, "images": quota.images_per_s}
        self.buckets = {
            name: _Bucket(rate, max(1.0, rate), now) for name, rate in rates.items() if rate
        }


class RateLimits:
    """Buckets and running requests of all keys, by name. For the event loop; not thread-safe.

    Args:
        clock: monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usage: dict[str, _Usage] = {}

    @contextmanager
    def request(self, key: str, quota: Quota) -> Iterator[None]:
        """Count a request of a key while it is answered.

        Raises:
            QuotaExceeded: too many at once, or per second.
        """
        usage = self._of(key, quota)
        if quota.concurrency is not None and usage.running >= quota.concurrency:
            raise QuotaExceeded(
                f"Key {key!r} has {usage.running} requests in progress; its limit is "
                f"{quota.concurrency}. Wait for their answers.",
                quota="concurrency",
                limit=quota.concurrency,
                retry_after_s=_BUSY_RETRY_S,
            )
        self.take(key, quota, "requests", 1)
        usage.running += 1
        try:
            yield
        finally:
            usage.running -= 1

    def take(self, key: str, quota: Quota, name: str, amount: int) -> None:
        """Take requests or images from their bucket, if there is a limit.

        Raises:
            QuotaExceeded: the bucket does not hold so much.
        """
        bucket = self._of(key, quota).buckets.get(name)
        if bucket is None:
            return
        bucket.fill(self._clock())
        if wait_s := bucket.wait_s(amount):
            raise QuotaExceeded(
                f"Key {key!r} may send {bucket.rate:g} {name} per second. Retry after "
                f"{wait_s:.3f} s.",
                quota=f"{name}_per_s",
                limit=bucket.rate,
                retry_after_s=wait_s,
            )
        bucket.level -= amount

    def headers(self, key: str, quota: Quota) -> dict[str, str]:
        """Return the RateLimit headers of an answer; none if the key has no rates."""
        buckets = self._of(key, quota).buckets
        for bucket in buckets.values():
            bucket.fill(self._clock())
        items = [bucket.headers(name) for name, bucket in buckets.items()]
        if not items:
            return {}
        policies, levels = zip(*items, strict=True)
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(levels)}

    def _of(self, key: str, quota: Quota) -> _Usage:
        found = self._usage.get(key)
        if found is None or (found.quota != quota and not found.running):
            if len(self._usage) >= _MAX_KEPT:
                self._usage = {name: one for name, one in self._usage.items() if one.running}
            found = self._usage[key] = _Usage(quota, self._clock())
        return found
