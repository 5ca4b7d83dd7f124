"""Health checks behind the probes: each one uses a part of the service.

    image     an image goes through the queue and the image graph
    text      a class name goes through the text graph
    registry  the database answers, or the tasks in memory may be served without it
    changes   a transaction that writes can be opened
    disk      a megabyte can be written to the folder of an SQLite registry

The first three are readiness, all five writability.

A check passes without running if it passed, or a real request succeeded, within the last
``FRESH_S``. Each check has one thread and runs at most once at a time, however many probes wait for
it. So a fault shows within ``FRESH_S + CHECK_TIMEOUT_S``, and probes cannot overload the service.
"""

import asyncio
import io
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from prompt_serve.errors import NotReady, PromptServeError
from prompt_serve.service.inference.batcher import Batcher
from prompt_serve.service.storage.database import Database, parse_url, sqlite_path
from prompt_serve.service.tasks.resolver import TaskResolver

FRESH_S = 2.0
CHECK_TIMEOUT_S = 2.5
_PROBE_FILE_BYTES = 2**20  # more than an upload of a thousand classes writes
_NEVER = float("-inf")
_log = logging.getLogger(__name__)
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
        self.name = name
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
            failure = NotReady(f"The {self.name} did not answer within {self._timeout_s:g} s.")
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
            return NotReady(f"The {self.name} failed: {error.message}")
        # A check is there to find unexpected faults, of ONNX Runtime or the disk.
        except Exception as error:
            return NotReady(f"The {self.name} failed: {type(error).__name__}: {error}")
        self._passed_at = time.monotonic()
        return None


class Health:
    """All checks of a service.

    Args:
        batcher: queue and inference thread.
        check_text_encoder: runs the text graph once.
        last_text_success: ``time.monotonic()`` of its last success.
        resolver: reads the revision of the registry.
        database: the opened registry.
        url: SQLAlchemy URL of the registry.
        slowest_batch_s: duration of the largest batch, so that a slow device does not count as
            stalled.
    """

    def __init__(
        self,
        batcher: Batcher,
        check_text_encoder: Callable[[], object],
        last_text_success: Callable[[], float],
        resolver: TaskResolver,
        database: Database,
        url: str,
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
            Check(
                "registry",
                resolver.refresh,
                last_success=lambda: time.monotonic() if resolver.tolerates_outage else _NEVER,
            ),
        ]
        self._resolver = resolver
        self._write_checks = [
            Check("changes", database.check_writable, last_success=lambda: database.last_write)
        ]
        if (file := sqlite_file(url)) is not None:
            self._write_checks.append(Check("disk", lambda: _check_disk(file)))

    def close(self) -> None:
        for check in (*self._checks, *self._write_checks):
            check.close()

    @property
    def is_alive(self) -> bool:
        """False if only a restart helps."""
        return self._batcher.alive and self._batcher.running_for_s < self._stalled_s

    async def check(self) -> None:
        """Raise NotReady with all failed checks of readiness."""
        if not self.is_alive:
            raise NotReady("The inference thread died or hangs; restart the service.")
        _raise_failures(await _run_all(self._checks))

    async def check_writable(self) -> None:
        """Raise NotReady with all failed checks of writability."""
        _raise_failures(await _run_all(self._write_checks))

    async def readiness(self) -> "Readiness":
        """Return the state for the readiness probe, and log what failed."""
        if not self.is_alive:
            return Readiness(failed=("inference thread",), ready=False, writable=False)
        reading, writing = await asyncio.gather(
            _run_all(self._checks), _run_all(self._write_checks)
        )
        for failure in (*reading.values(), *writing.values()):
            _log.warning("not ready: %s", failure.message)
        return Readiness(
            ready=not reading,
            writable=not reading and not writing and not self._resolver.stale_s,
            stale_s=self._resolver.stale_s,
            failed=(*reading, *writing),
        )


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """State that the readiness probe reports. Names of parts only: the probe needs no key."""

    ready: bool  # classification works
    writable: bool  # changes can be stored
    stale_s: float = 0.0  # age of the tasks while the database cannot be read
    failed: tuple[str, ...] = ()  # names of the checks

    def document(self) -> dict[str, object]:
        """Return the body of the answer."""
        stale = {"stale_s": round(self.stale_s, 1)} if self.stale_s else {}
        state = {"ready": self.ready, "writable": self.writable}
        return {**state, **stale, "failed": list(self.failed)}


NOT_STARTED = Readiness(ready=False, writable=False, failed=("start",))


async def _run_all(checks: Sequence[Check]) -> dict[str, NotReady]:
    """Run checks; return the failures by the names of the checks."""
    outcomes = await asyncio.gather(*(check.run() for check in checks), return_exceptions=True)
    _raise_unexpected(outcomes)
    named = zip(checks, outcomes, strict=True)
    return {check.name: outcome for check, outcome in named if isinstance(outcome, NotReady)}


def _raise_failures(failures: Mapping[str, NotReady]) -> None:
    if failures:
        messages = " ".join(failure.message for failure in failures.values())
        raise NotReady(messages, retry_after_s=1.0)


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
