"""Health checks behind the probes: each one uses a part of the service.

    image     an image goes through the queue and the image graph
    text      a class name goes through the text graph
    registry  the database answers
    disk      a megabyte can be written to the folder of an SQLite registry

A check passes without running if it passed, or a real request succeeded, within the last
``FRESH_S``. Each check has one thread and runs at most once at a time, however many probes wait for
it. So a fault shows within ``FRESH_S + CHECK_TIMEOUT_S``, and probes cannot overload the service.
"""

import asyncio
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from prompt_serve.errors import NotReady, PromptServeError
from prompt_serve.service.inference.batcher import Batcher
from prompt_serve.service.storage.database import parse_url, sqlite_path

FRESH_S = 2.0
CHECK_TIMEOUT_S = 2.5
_PROBE_FILE_BYTES = 2**20  # more than an upload of a thousand classes writes
_STALLED_S = 60.0  # a batch takes longer only if the device hangs


class Check:
    """One part of the service that must work.

    Args:
        name: its name in messages.
        attempt: uses it; raises any exception if it does not work. May block.
        last_success: ``time.monotonic()`` of the last success of real work.
        timeout_s: maximum duration of an attempt.
    """

    def __init__(
        self,
        name: str,
        attempt: Callable[[], object],
        *,
        last_success: Callable[[], float] = lambda: float("-inf"),
        timeout_s: float = CHECK_TIMEOUT_S,
    ) -> None:
        self._name = name
        self._attempt = attempt
        self._last_success = last_success
        self._timeout_s = timeout_s
        self._passed_at = float("-inf")
        self._running: Future[NotReady | None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"check-{name}")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def run(self) -> None:
        """Raise NotReady unless the part worked within ``FRESH_S`` or works now."""
        if self._is_fresh:
            return
        if self._running is None or self._running.done():
            self._running = self._thread.submit(self._try)
        waiting = asyncio.shield(asyncio.wrap_future(self._running))
        try:
            failure = await asyncio.wait_for(waiting, self._timeout_s)
        except TimeoutError:
            failure = NotReady(f"The {self._name} did not answer within {self._timeout_s:g} s.")
        # Real work may have succeeded while this attempt waited behind it.
        if failure is not None and not self._is_fresh:
            raise failure

    @property
    def _is_fresh(self) -> bool:
        return time.monotonic() - max(self._passed_at, self._last_success()) <= FRESH_S

    def _try(self) -> NotReady | None:
        try:
            self._attempt()
        except PromptServeError as error:
            return NotReady(f"The {self._name} failed: {error.message}")
        # A check is there to find unexpected faults, of ONNX Runtime or the disk.
        except Exception as error:
            return NotReady(f"The {self._name} failed: {type(error).__name__}: {error}")
        self._passed_at = time.monotonic()
        return None


class Health:
    """All checks of a service.

    Args:
        batcher: queue and inference thread.
        check_text_encoder: runs the text graph once.
        last_text_success: ``time.monotonic()`` of its last success.
        query_registry: runs a small database query.
        database: SQLAlchemy URL of the registry.
        slowest_batch_s: duration of the largest batch, so that a slow device does not count as
            stalled.
    """

    def __init__(
        self,
        batcher: Batcher,
        check_text_encoder: Callable[[], object],
        last_text_success: Callable[[], float],
        query_registry: Callable[[], object],
        database: str,
        slowest_batch_s: float,
    ) -> None:
        self._batcher = batcher
        self._stalled_s = max(_STALLED_S, 10 * slowest_batch_s)
        timeout_s = CHECK_TIMEOUT_S + 3 * slowest_batch_s
        self._checks = [
            Check(
                "image encoder",
                lambda: _encode_test_image(batcher, timeout_s),
                last_success=lambda: batcher.last_success,
                timeout_s=timeout_s,
            ),
            Check("text encoder", check_text_encoder, last_success=last_text_success),
            Check("registry", query_registry),
        ]
        if (file := sqlite_file(database)) is not None:
            self._checks.append(Check("disk", lambda: _check_disk(file)))

    def close(self) -> None:
        for check in self._checks:
            check.close()

    @property
    def is_alive(self) -> bool:
        """False if only a restart helps."""
        return self._batcher.alive and self._batcher.running_for_s < self._stalled_s

    async def check(self) -> None:
        """Raise NotReady with all failed checks."""
        if not self.is_alive:
            raise NotReady("The inference thread died or hangs; restart the service.")
        outcomes = await asyncio.gather(*(c.run() for c in self._checks), return_exceptions=True)
        _raise_unexpected(outcomes)
        failures = [outcome.message for outcome in outcomes if isinstance(outcome, NotReady)]
        if failures:
            raise NotReady(" ".join(failures), retry_after_s=1.0)


def sqlite_file(database: str) -> Path | None:
    """Return the file of an SQLite database; None for databases in memory or on a server."""
    return sqlite_path(parse_url(database))


def _encode_test_image(batcher: Batcher, timeout_s: float) -> None:
    future = batcher.submit([_test_image()], time.monotonic() + timeout_s)
    try:
        (outcome,) = future.result(timeout_s)
    finally:
        future.cancel()
    if isinstance(outcome, PromptServeError):
        raise outcome


def _check_disk(file: Path) -> None:
    # SQLite continues with a file that was deleted meanwhile, and all changes would be lost.
    if not file.is_file():
        raise NotReady(f"{file} is gone; restart the service.")
    with tempfile.TemporaryFile(dir=file.parent) as probe:
        probe.write(bytes(_PROBE_FILE_BYTES))


def _test_image() -> bytes:
    """Return a small gray PNG, so that the check includes decoding."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


def _raise_unexpected(outcomes: Sequence[BaseException | None]) -> None:
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, NotReady):
            raise outcome
