"""Wall-clock time of a request by stage: registry, text, decode, queue, inference, score."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

Stage = Literal["registry", "text", "decode", "queue", "inference", "score"]


@dataclass
class StageTime:
    """Time of one stage, from its first start to its last end on ``time.monotonic()``.

    ``busy_s`` is the sum over all work of the stage, concurrent work included: with many images it
    may exceed the time from start to end.
    """

    started: float
    ended: float
    busy_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        return self.ended - self.started


class StageTimings:
    """Stages of one request, in the order in which they started. Thread-safe."""

    def __init__(self) -> None:
        self._times: dict[Stage, StageTime] = {}
        self._lock = threading.Lock()

    def add(self, stage: Stage, started: float, ended: float) -> None:
        """Add the time from ``started`` to ``ended`` (``time.monotonic()``) to a stage."""
        with self._lock:
            entry = self._times.get(stage)
            if entry is None:
                entry = self._times[stage] = StageTime(started, ended)
            entry.started = min(entry.started, started)
            entry.ended = max(entry.ended, ended)
            entry.busy_s += ended - started

    def __bool__(self) -> bool:
        """Return True if there is any stage."""
        return bool(self._times)

    def during(
        self, stage: Stage, observe: Callable[[float], object] | None = None
    ) -> AbstractContextManager[None]:
        """Add the time of the block to a stage, also if it raises.

        Args:
            stage: of the request.
            observe: called with the seconds.
        """
        return _During(self, stage, observe)

    def by_stage(self) -> dict[Stage, StageTime]:
        """Return a copy of the times so far, ordered by start."""
        with self._lock:
            copies = {
                stage: StageTime(entry.started, entry.ended, entry.busy_s)
                for stage, entry in self._times.items()
            }
        return dict(sorted(copies.items(), key=lambda item: item[1].started))


class _During:
    """Block whose time is added to a stage. A class: generators take four times as long."""

    def __init__(
        self, timings: StageTimings, stage: Stage, observe: Callable[[float], object] | None
    ) -> None:
        self._timings = timings
        self._stage = stage
        self._observe = observe
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        ended = time.monotonic()
        self._timings.add(self._stage, self._started, ended)
        if self._observe is not None:
            self._observe(ended - self._started)
