"""Startup time by stage, for the log and ``/v1/info``."""

import time

import psutil


class StartupTimer:
    """Consecutive stages of a startup, counted from the start of the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = psutil.Process().create_time()
        self.done("imports")

    def done(self, stage: str) -> None:
        """Record the time since the previous stage ended as that of ``stage``."""
        now = time.time()
        self.seconds[stage] = round(now - self._mark, 3)
        self._mark = now

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s ({stages})"
