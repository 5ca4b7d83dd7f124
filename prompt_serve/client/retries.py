"""Retry timing: exponential backoff with jitter, and the service's Retry-After."""

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Too many requests; a restarting service, or a proxy whose service restarts.
RETRIED_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Limits on the retries of one call. Every call of the API is safe to repeat."""

    retries: int | None = 4  # attempts after the first; None: as many as the budget allows
    budget_s: float = 60.0  # from the first failure to the last attempt
    first_delay_s: float = 0.25  # doubles with every failure
    max_delay_s: float = 5.0


class RetryState:
    """Failures so far and remaining budget of one call."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._first_failure: float | None = None
        self.failures = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first failure."""
        return 0.0 if self._first_failure is None else time.monotonic() - self._first_failure

    def next_delay_s(self, retry_after_s: float | None = None) -> float | None:
        """Record a failure and return the seconds to wait before the next attempt.

        Args:
            retry_after_s: delay the service asked for. It is never shortened; if it exceeds the
                remaining budget, the call is given up.

        Returns:
            The delay in seconds, or None to give up.
        """
        if self._first_failure is None:
            self._first_failure = time.monotonic()
        self.failures += 1
        left_s = self._policy.budget_s - self.elapsed_s
        if self._policy.retries is not None and self.failures > self._policy.retries:
            return None
        if left_s <= 0 or (retry_after_s or 0.0) > left_s:
            return None
        if retry_after_s is not None:
            # Spread out clients that were given the same delay.
            return retry_after_s + random.uniform(0.0, min(1.0, 0.25 * retry_after_s))
        return min(self._backoff_s(), left_s)

    def _backoff_s(self) -> float:
        doublings = min(self.failures - 1, 30)
        longest = min(self._policy.first_delay_s * 2**doublings, self._policy.max_delay_s)
        return random.uniform(0.5 * longest, longest)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date; None if it is invalid."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: str) -> float | None:
    try:
        when = parsedate_to_datetime(date)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
