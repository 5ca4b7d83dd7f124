"""Deadline of a request, which all of its work shares."""

import time
from dataclasses import dataclass

from prompt_serve.errors import DeadlineExceeded, RequestInvalid
from prompt_serve.schemas import TIMEOUT_HEADER


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """Deadline of a request on ``time.monotonic()``, and the timeout it was made from."""

    at: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> "Deadline":
        return cls(at=time.monotonic() + timeout_s, timeout_s=timeout_s)

    @classmethod
    def from_header(cls, text: str | None, max_timeout_s: float) -> "Deadline":
        """Return the deadline that a request's header sets, ``max_timeout_s`` from now at most.

        Raises:
            RequestInvalid: the header is not a whole number of milliseconds above 0.
        """
        if text is None:
            return cls.after(max_timeout_s)
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
            raise RequestInvalid(
                f"{TIMEOUT_HEADER} is {text[:50]!r}; expected a whole number of milliseconds "
                f"above 0."
            )
        return cls.after(min(int(text) / 1000, max_timeout_s))

    @property
    def left_s(self) -> float:
        """Time that is left; 0 after the deadline."""
        return max(0.0, self.at - time.monotonic())

    def check(self, n_done: int, n_tasks: int) -> None:
        """Raise DeadlineExceeded if the deadline has passed before all tasks were scored."""
        if not self.left_s:
            raise self.exceeded(
                f"after {n_done:,} of {n_tasks:,} tasks. Send fewer images or tasks at once, or "
                f"allow more time."
            )

    def exceeded(self, when: str) -> DeadlineExceeded:
        """Return the error of a request whose deadline passed, for example ``"in a queue."``."""
        message = f"The request's deadline passed {when}"
        return DeadlineExceeded(message, timeout_s=self.timeout_s)
