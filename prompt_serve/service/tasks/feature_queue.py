"""Compute class features in one low-priority thread, so that uploads do not slow down requests.

On Linux a thread has its own priority, and new threads inherit it. The text encoder's session is
opened in such a thread (see ``Engine``), so that ONNX Runtime's own threads have low priority too.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from prompt_serve.service.observability import metrics
from prompt_serve.service.request_context import current_request
from prompt_serve.types import FloatArray

NICENESS = 10  # about a tenth of the CPU time of a normal thread that competes for the same core

_T = TypeVar("_T")


def lower_priority() -> None:
    """Give the calling thread a low priority; does nothing where the system does not allow it."""
    if sys.platform == "linux":
        # Linux sets priorities per thread. Only unusual sandboxes refuse, and nothing is lost then.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def at_low_priority(work: Callable[[], _T]) -> _T:
    """Run ``work`` in a low-priority thread and return its result."""
    with ThreadPoolExecutor(1, "low-priority", initializer=lower_priority) as pool:
        return pool.submit(work).result()


class FeatureQueue:
    """Computes class features one version at a time; simultaneous callers share one computation."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "class-features", initializer=lower_priority)
        self._running: dict[str, Future[FloatArray]] = {}
        self._lock = threading.Lock()

    def run(self, version: str, compute: Callable[[], FloatArray]) -> FloatArray:
        """Return the result of ``compute`` for ``version``; blocks until its turn has come.

        Raises:
            Exception: anything that ``compute`` raises, in every caller that waits for it.
        """
        with self._lock:
            running = self._running.get(version)
            if running is None:
                running = self._running[version] = self._pool.submit(self._run, version, compute)
        with current_request().timings.during("text"):
            return running.result()

    def close(self) -> None:
        """Finish the running computation and cancel the waiting ones."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, version: str, compute: Callable[[], FloatArray]) -> FloatArray:
        try:
            with metrics.text_encoding_seconds.time():
                return compute()
        finally:
            with self._lock:
                del self._running[version]
