"""When to ask again: exponential backoff with jitter, and what the service itself asks for."""

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
    """How long to go on asking. Every call of the protocol may be repeated safely."""

    retries: int | None = 4  # further attempts after the first; None: as many as the budget allows
    budget_s: float = 60.0  # from the first failure to the last attempt
    first_delay_s: float = 0.25  # doubles with every failure
    max_delay_s: float = 5.0


class RetryState:
    """What is left of a policy for one call."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._since: float | None = None
        self.failures = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first failure."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def next_delay_s(self, retry_after_s: float | None = None) -> float | None:
        """Note a failure; how long to wait before asking again, None to give up.

        Args:
            retry_after_s: what the service asked for. Never cut short: where it exceeds the
                budget there is no use in waiting.
        """
        self._since = time.monotonic() if self._since is None else self._since
        self.failures += 1
        left_s = self._policy.budget_s - self.elapsed_s
        if self._policy.retries is not None and self.failures > self._policy.retries:
            return None
        if left_s <= 0 or (retry_after_s or 0.0) > left_s:
            return None
        if retry_after_s is not None:
            # Spread, so that not all who were told the same second come back in it.
            return retry_after_s + random.uniform(0.0, min(1.0, 0.25 * retry_after_s))
        return min(self._backoff_s(), left_s)

    def _backoff_s(self) -> float:
        doublings = min(self.failures - 1, 30)
        longest = min(self._policy.first_delay_s * 2**doublings, self._policy.max_delay_s)
        return random.uniform(0.5 * longest, longest)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from a Retry-After header, a number or a date; None without a sane one."""
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
