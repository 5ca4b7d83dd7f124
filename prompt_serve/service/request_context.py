"""What is known of the request that is being answered: who asks, for what, and where its time goes.

The outermost middleware puts ``RequestContext`` into a context variable; whoever learns something
writes it there, and when the answer is out, the log, the trace, ``Server-Timing`` and the audit log
read it. Threads see it because ``Core`` runs their work in a copy of the request's context. Outside
of requests ``current()`` gives facts that nobody reads, so no caller needs to ask.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["registry", "text", "decode", "queue", "inference", "score"]


@dataclass(frozen=True)
class Actor:
    """Who asks. ``key_id`` is empty for those without a key."""

    name: str
    key_id: str = ""


ANONYMOUS = Actor("anonymous")


@dataclass
class Spent:
    """The time of one stage: from its first beginning to its last end, on ``time.monotonic()``.

    ``busy_s`` is the sum over all that ran in it, side by side too: with many images it may exceed
    the time from beginning to end.
    """

    started: float
    ended: float
    busy_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        return self.ended - self.started


class Timings:
    """The stages of one request, in the order in which they began. Thread-safe."""

    def __init__(self) -> None:
        self._spent: dict[Stage, Spent] = {}
        self._lock = threading.Lock()

    def add(self, stage: Stage, started: float, ended: float) -> None:
        """Count the time from ``started`` to ``ended`` (of ``time.monotonic()``) to a stage."""
        with self._lock:
            spent = self._spent.setdefault(stage, Spent(started, ended))
            spent.started = min(spent.started, started)
            spent.ended = max(spent.ended, ended)
            spent.busy_s += ended - started

    @contextmanager
    def during(self, stage: Stage) -> Iterator[None]:
        """Count the time inside to a stage, also when it ends in an error."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, started, time.monotonic())

    def spent(self) -> dict[Stage, Spent]:
        with self._lock:
            found = {stage: Spent(**vars(spent)) for stage, spent in self._spent.items()}
        return dict(sorted(found.items(), key=lambda item: item[1].started))


@dataclass
class RequestContext:
    """See the module; ``images`` and ``tasks`` are how many the request asks about."""

    request_id: str = ""
    actor: Actor = ANONYMOUS
    images: int = 0
    tasks: int = 0
    timings: Timings = field(default_factory=Timings)


_current: ContextVar[RequestContext | None] = ContextVar("prompt_serve_request", default=None)


def current() -> RequestContext:
    """The facts of the request in whose context this runs; blank ones where there is none."""
    return _current.get() or RequestContext()


def begin(facts: RequestContext) -> Token[RequestContext | None]:
    """Make ``facts`` the current ones, until ``end`` is given the token."""
    return _current.set(facts)


def end(token: Token[RequestContext | None]) -> None:
    """Undo ``begin``."""
    _current.reset(token)


def server_timing(timings: Timings, total_s: float) -> str:
    """The value of a ``Server-Timing`` header, in milliseconds.

    Each stage lasts from its first image's beginning to its last image's end; stages of a request
    of several images overlap, so they may add up to more than the total.
    """
    stages = [(stage, spent.elapsed_s) for stage, spent in timings.spent().items()]
    return ", ".join(f"{name};dur={s * 1000:.2f}" for name, s in [*stages, ("total", total_s)])
