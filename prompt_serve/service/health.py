"""Does the service do what it is there for? Asked by probes, answered by trying.

    image     an image goes through the queue and the image graph
    text      a class name goes through the text graph
    registry  the database answers
    disk      the folder of an SQLite registry takes a megabyte

What passed, or succeeded for a real request, within the last ``FRESH_S`` counts. Each check runs at
most once at a time, in a thread of its own, however many probes wait for it: a fault shows within
``FRESH_S + PATIENCE_S``, and nobody can load the service by asking how it is.
"""

import asyncio
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from sqlalchemy.engine import make_url

from prompt_serve.errors import NotReady, PromptServeError
from prompt_serve.service.inference.batcher import Batcher

FRESH_S = 2.0
PATIENCE_S = 2.5
_ROOM_BYTES = 2**20  # more than an upload of a thousand classes writes
_STALLED_S = 60.0  # one batch does not take this long, unless the device hangs


class Check:
    """One thing that must work.

    Args:
        what: its name in messages.
        attempt: tries it; raises whatever it likes when it does not work. May block.
        last_success: ``time.monotonic()`` of the last time it worked without being asked to.
        patience_s: for how long an attempt may take.
    """

    def __init__(
        self,
        what: str,
        attempt: Callable[[], object],
        *,
        last_success: Callable[[], float] = lambda: float("-inf"),
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._what = what
        self._attempt = attempt
        self._last_success = last_success
        self._patience_s = patience_s
        self._passed_at = float("-inf")
        self._running: Future[NotReady | None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"check-{what}")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def passes(self) -> None:
        """Raise NotReady unless it worked a moment ago or works now."""
        if self._is_fresh:
            return
        if self._running is None or self._running.done():
            self._running = self._thread.submit(self._try)
        waiting = asyncio.shield(asyncio.wrap_future(self._running))
        try:
            failure = await asyncio.wait_for(waiting, self._patience_s)
        except TimeoutError:
            failure = NotReady(f"The {self._what} gave no answer in {self._patience_s:g} s.")
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
            return NotReady(f"The {self._what} failed: {error.message}")
        # A check is there to find faults nobody thought of, of ONNX Runtime or the disk.
        except Exception as error:
            return NotReady(f"The {self._what} failed: {type(error).__name__}: {error}")
        self._passed_at = time.monotonic()
        return None


class Health:
    """All checks of a service.

    Args:
        batcher: queue and inference thread.
        encode_a_name: runs the text graph once.
        last_text_success: ``time.monotonic()`` of its last success.
        ask_registry: asks the database something small.
        database: SQLAlchemy's URL of the registry.
        slowest_batch_s: how long the largest batch takes, so that slow is not taken for stuck.
    """

    def __init__(
        self,
        batcher: Batcher,
        encode_a_name: Callable[[], object],
        last_text_success: Callable[[], float],
        ask_registry: Callable[[], object],
        database: str,
        slowest_batch_s: float,
    ) -> None:
        self._batcher = batcher
        self._stalled_s = max(_STALLED_S, 10 * slowest_batch_s)
        patience_s = PATIENCE_S + 3 * slowest_batch_s
        self._checks = [
            Check(
                "image encoder",
                lambda: _encode_a_picture(batcher, patience_s),
                last_success=lambda: batcher.last_success,
                patience_s=patience_s,
            ),
            Check("text encoder", encode_a_name, last_success=last_text_success),
            Check("registry", ask_registry),
        ]
        if (file := sqlite_file(database)) is not None:
            self._checks.append(Check("disk", lambda: _check_disk(file)))

    def close(self) -> None:
        for check in self._checks:
            check.close()

    @property
    def is_alive(self) -> bool:
        """False when only a restart helps."""
        return self._batcher.alive and self._batcher.running_for_s < self._stalled_s

    async def check(self) -> None:
        """Raise NotReady, naming everything that does not work."""
        if not self.is_alive:
            raise NotReady("The inference thread has died or hangs; restart the service.")
        found = await asyncio.gather(*(c.passes() for c in self._checks), return_exceptions=True)
        _raise_first_stranger(found)
        failures = [outcome.message for outcome in found if isinstance(outcome, NotReady)]
        if failures:
            raise NotReady(" ".join(failures), retry_after_s=1.0)


def sqlite_file(database: str) -> Path | None:
    """The file of an SQLite database; None for those in memory and on servers."""
    url = make_url(database)
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def _encode_a_picture(batcher: Batcher, patience_s: float) -> None:
    future = batcher.submit([_picture()], time.monotonic() + patience_s)
    try:
        (outcome,) = future.result(patience_s)
    finally:
        future.cancel()  # nobody waits for it any more
    if isinstance(outcome, PromptServeError):
        raise outcome


def _check_disk(file: Path) -> None:
    # SQLite goes on with a file that was deleted under it, and all changes would be lost with it.
    if not file.is_file():
        raise NotReady(f"{file} is gone; restart the service.")
    with tempfile.TemporaryFile(dir=file.parent) as probe:
        probe.write(bytes(_ROOM_BYTES))


def _picture() -> bytes:
    """A small gray PNG, so that the probe takes the way of every image, decoding included."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


def _raise_first_stranger(outcomes: Sequence[BaseException | None]) -> None:
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, NotReady):
            raise outcome
