"""Class features are computed in one thread of low priority, so that uploads do not slow answers.

On Linux a thread has a priority of its own, and threads inherit it: the text encoder's session is
opened in a thread like this one (see ``Engine``), so ONNX Runtime's own threads stand back as well.
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

NICENESS = 10  # about a tenth of the time of a thread of normal priority, where both want the core

_T = TypeVar("_T")


def lower_priority() -> None:
    """Let all normal threads of the machine go before the calling one, where the system can."""
    if sys.platform == "linux":
        # A thread is a process to Linux. Refused only by unusual sandboxes; then nothing is lost.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def at_low_priority(work: Callable[[], _T]) -> _T:
    """What ``work`` returns; the threads that it starts are of low priority."""
    with ThreadPoolExecutor(1, "low-priority", initializer=lower_priority) as pool:
        return pool.submit(work).result()


class FeatureQueue:
    """Computes class features one after the other; those of one version once for all who ask."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "class-features", initializer=lower_priority)
        self._running: dict[str, Future[FloatArray]] = {}
        self._lock = threading.Lock()
        self.encoded = 0  # versions since the start

    def run(self, version: str, compute: Callable[[], FloatArray]) -> FloatArray:
        """What ``compute`` gives for ``version``; waits for its turn."""
        with self._lock:
            running = self._running.get(version)
            if running is None:
                running = self._running[version] = self._pool.submit(self._run, version, compute)
        with current_request().timings.during("text"):
            return running.result()

    @property
    def waiting(self) -> int:
        """Versions that are being encoded or wait for it."""
        return len(self._running)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, version: str, compute: Callable[[], FloatArray]) -> FloatArray:
        try:
            with metrics.text_encoding_seconds.time():
                features = compute()
            self.encoded += 1
            return features
        finally:
            with self._lock:
                del self._running[version]
