"""Images of many requests -> image features, in batches: whatever waits when the device is free.

    submit -> [decode pool: bytes -> pixels] -> ready -> [one inference thread: pixels -> features]

Decoding of the next images overlaps with the encoding of the batch before. Every image has an
outcome of its own, features or an error; a request's future is done when its last image is.
The queue is bounded in images and in bytes. Images whose request was given up leave it at once;
those past their deadline are not run.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from prompt_serve.errors import (
    DeadlineExceeded,
    NotReady,
    Overloaded,
    PromptServeError,
    ServiceError,
)
from prompt_serve.service.observability import metrics
from prompt_serve.service.request_context import current
from prompt_serve.types import FloatArray, PixelArray

Given = bytes | PixelArray  # an image file, or (S, S, 3) pixels as the encoder takes them
Outcome = FloatArray | PromptServeError

_DECODE_NICENESS = 5
_FORGETTING = 0.8  # of what was measured before, with every batch
_LONGEST_RETRY_S = 60.0

_log = logging.getLogger(__name__)


class PendingRequest:
    """The images of one request; ``future`` is done when the last of them has an outcome."""

    def __init__(self, size: int, deadline: float) -> None:
        self.future: Future[list[Outcome]] = Future()
        self.deadline = deadline
        self.timings = current().timings  # of the request, in whose context tickets are made
        self._outcomes: list[Outcome | None] = [None] * size
        self._missing = size
        self._lock = threading.Lock()

    def set_result(self, index: int, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[index] = outcome
            self._missing -= 1
            done = self._missing == 0
        if done:
            with suppress(InvalidStateError):  # given up meanwhile: nobody waits for it
                self.future.set_result([o for o in self._outcomes if o is not None])

    @property
    def refusal(self) -> PromptServeError | None:
        """Why the images of this ticket are not worth running any more."""
        if self.future.cancelled():
            return ServiceError("The request was given up.")
        if time.monotonic() > self.deadline:
            return _too_late()
        return None


class _Image:
    """One image on its way."""

    __slots__ = ("admitted_at", "data", "index", "pixels", "ready_at", "size_bytes", "ticket")

    def __init__(self, given: Given, ticket: PendingRequest, index: int) -> None:
        self.data = given if isinstance(given, bytes) else b""
        self.pixels = None if isinstance(given, bytes) else given
        self.size_bytes = _size_bytes(given)
        self.ticket = ticket
        self.index = index
        self.admitted_at = time.monotonic()
        self.ready_at = 0.0


class _DrainRate:
    """Images a second that leave the queue while there are any in it."""

    def __init__(self) -> None:
        self._images = 0.0  # both fade alike, so that their ratio follows the last batches
        self._seconds = 0.0
        self._last = float("-inf")

    def note(self, images: int, since: float) -> None:
        """A batch has ended whose first image was admitted at ``since``."""
        now = time.monotonic()
        busy_s = max(1e-6, now - max(since, self._last))
        self._images = _FORGETTING * self._images + images
        self._seconds = _FORGETTING * self._seconds + busy_s
        self._last = now

    def seconds_for(self, images: float) -> float:
        """How long so many take; a guess before the first batch."""
        if self._images == 0.0:
            return 1.0
        return images * self._seconds / self._images


class Batcher:
    """Decode pool, queue and inference thread of one device.

    Args:
        decode: bytes of an image file -> (S, S, 3) pixels; raises PromptServeError for bad ones.
        encode: (B, S, S, 3) pixels -> (B, E) features.
        max_batch: the most images that are encoded together.
        max_queue_images: admitted and not yet answered; beyond it requests are refused.
        max_queue_bytes: of the same images, as they came.
        max_queue_delay_ms: how long an image that is ready waits at most for others to join its
            batch while the device is free. 0 is best unless the device is far from busy and
            large batches are much cheaper.
        decode_threads: size of the decode pool.
    """

    def __init__(
        self,
        decode: Callable[[bytes], PixelArray],
        encode: Callable[[PixelArray], FloatArray],
        *,
        max_batch: int,
        max_queue_images: int,
        max_queue_bytes: int,
        max_queue_delay_ms: float,
        decode_threads: int,
    ) -> None:
        self._decode = decode
        self._encode = encode
        self._max_batch = max_batch
        self._max_queue_images = max_queue_images
        self._max_queue_bytes = max_queue_bytes
        self._max_queue_delay_s = max_queue_delay_ms / 1000
        self._pool = ThreadPoolExecutor(
            decode_threads, thread_name_prefix="decode", initializer=_yield_to_inference
        )
        self._changed = threading.Condition()  # guards everything below
        self._ready: deque[_Image] = deque()
        self._admitted: set[_Image] = set()
        self._admitted_bytes = 0
        self._refusing: str | None = None  # why nothing more is admitted
        self._stopped = False
        self._running_since: float | None = None
        self._last_success = float("-inf")
        self._drain_rate = _DrainRate()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the inference thread runs; it ends only by ``stop`` or by a fault of its own."""
        return self._thread.is_alive()

    @property
    def last_success(self) -> float:
        """``time.monotonic()`` of the last batch that succeeded."""
        return self._last_success

    @property
    def running_for_s(self) -> float:
        """How long the present batch has been running; 0 between batches."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def waiting(self) -> tuple[int, int]:
        """Images admitted and not yet answered, and their bytes."""
        with self._changed:
            return len(self._admitted), self._admitted_bytes

    def submit(self, images: Sequence[Given], deadline: float) -> Future[list[Outcome]]:
        """Queue the images of one request.

        Args:
            images: at least one.
            deadline: of ``time.monotonic()``, after which they are not run any more.

        Returns:
            A future of one outcome an image, in their order. Cancel it to give the request up:
            its images leave the queue at once.

        Raises:
            Overloaded: the queue is full; says when to try again.
            NotReady: the batcher was stopped, or its inference thread died.
        """
        ticket = PendingRequest(len(images), deadline)
        admitted = [_Image(data, ticket, index) for index, data in enumerate(images)]
        size_bytes = sum(image.size_bytes for image in admitted)
        with self._changed:
            self.check_room(len(images), size_bytes)
            self._admitted.update(admitted)
            self._admitted_bytes += size_bytes
        metrics.queue_images.inc(len(admitted))
        metrics.queue_bytes.inc(size_bytes)
        ticket.future.add_done_callback(self._forget_if_given_up)
        for image in admitted:
            if image.pixels is None:
                self._pool.submit(self._prepare, image)
            else:
                self._is_ready(image)
        return ticket.future

    def check_room(self, images: int, size_bytes: int) -> None:
        """Raise what ``submit`` would for so many images of so many bytes together."""
        with self._changed:
            if self._refusing is not None:
                raise NotReady(self._refusing, retry_after_s=1.0)
            waiting = len(self._admitted)
            excess = waiting + images - self._max_queue_images
            if excess > 0:
                limit = f"{images} more exceed the {self._max_queue_images} that are queued at most"
                raise self._overloaded(waiting, limit, excess)
            excess_bytes = self._admitted_bytes + size_bytes - self._max_queue_bytes
            if excess_bytes > 0:
                limit = (
                    f"{self._admitted_bytes:,} bytes, {size_bytes:,} more exceed the "
                    f"{self._max_queue_bytes:,} that are queued at most"
                )
                share = excess_bytes / max(1, self._admitted_bytes)
                raise self._overloaded(waiting, limit, min(1.0, share) * waiting)

    def expire(self, future: Future[list[Outcome]]) -> None:
        """Answer for all images of a request that have no outcome yet: their time is up."""
        self._settle_all(future, _too_late())

    def stop(self, timeout_s: float) -> None:
        """Admit nothing more, finish what was admitted within the time, refuse the rest."""
        with self._changed:
            self._refusing = "The service is stopping."
            self._changed.wait_for(lambda: not self._admitted or not self.alive, timeout_s)
            self._stopped = True
            self._changed.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._refuse_all("The service is stopping.")
        self._thread.join(timeout=1.0)

    def _overloaded(self, waiting: int, limit: str, until_gone: float) -> Overloaded:
        """The refusal, with the time until ``until_gone`` images will have left the queue."""
        wait_s = min(_LONGEST_RETRY_S, max(0.1, self._drain_rate.seconds_for(until_gone)))
        return Overloaded(
            f"{waiting} images are waiting, {limit}. Try again in {wait_s:.1f} s.",
            retry_after_s=round(wait_s, 1),
            waiting=waiting,
        )

    def _prepare(self, image: _Image) -> None:
        """In the decode pool: bytes -> pixels, then on to the inference thread."""
        if refusal := image.ticket.refusal:
            self._settle(image, refusal)
            return
        try:
            image.pixels = self._timed_decode(image)
        except PromptServeError as error:
            self._settle(image, error)
            return
        # Nobody reads this pool's futures: an unforeseen error would leave the request hanging.
        except BaseException as error:
            _log.exception("an image could not be prepared")
            self._settle(image, _failed("preparing the image", error))
            return
        image.data = b""
        self._is_ready(image)

    def _timed_decode(self, image: _Image) -> PixelArray:
        started = time.monotonic()
        try:
            return self._decode(image.data)
        finally:
            ended = time.monotonic()
            image.ticket.timings.add("decode", started, ended)
            metrics.decode_seconds.observe(ended - started)

    def _is_ready(self, image: _Image) -> None:
        with self._changed:
            if image not in self._admitted:
                return  # given up while it was decoded
            image.ready_at = time.monotonic()
            self._ready.append(image)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                if batch:
                    self._infer(batch)
        # A fault in this module. The thread ends, but those who wait must not wait for ever.
        except BaseException:
            _log.critical("the inference thread died", exc_info=True)
            with self._changed:
                self._refusing = "The inference thread has died; the service must be restarted."
                self._changed.notify_all()
            self._refuse_all(self._refusing)

    def _next_batch(self) -> list[_Image] | None:
        """Wait for images; None means stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._stopped)
            if self._ready and self._max_queue_delay_s > 0:
                self._wait_for_more()
            batch = None if self._stopped else self._take()
        _note_waits(batch or [])
        return batch

    def _take(self) -> list[_Image]:
        """The first images that are worth running; none where all were given up meanwhile."""
        batch: list[_Image] = []
        while self._ready and len(batch) < self._max_batch:
            image = self._ready.popleft()
            if refusal := image.ticket.refusal:
                self._settle(image, refusal)
            else:
                batch.append(image)
        return batch

    def _wait_for_more(self) -> None:
        # Counted from when the first one was ready: those that come do not prolong it.
        left = self._ready[0].ready_at + self._max_queue_delay_s - time.monotonic()
        self._changed.wait_for(
            lambda: len(self._ready) >= self._max_batch or self._stopped, max(0.0, left)
        )

    def _infer(self, batch: list[_Image]) -> None:
        self._running_since = started = time.monotonic()
        try:
            features = self._encode(np.stack([i.pixels for i in batch if i.pixels is not None]))
        # ONNX Runtime's exceptions share no base but Exception; one batch may fail, e.g. for lack
        # of memory, and the next may not.
        except Exception as error:
            self._running_since = None
            self._retry_in_halves(batch, error)
            return
        self._running_since = None
        self._last_success = time.monotonic()
        _note_batch(batch, started, self._last_success)
        with self._changed:
            self._drain_rate.note(len(batch), min(image.admitted_at for image in batch))
        for image, row in zip(batch, features, strict=True):
            self._settle(image, row)

    def _retry_in_halves(self, batch: list[_Image], error: Exception) -> None:
        """What one image brought about must not fail the others of its batch."""
        if len(batch) == 1:
            _log.error("the image encoder failed", exc_info=error)
            self._settle(batch[0], _failed("encoding the image", error))
            return
        middle = len(batch) // 2
        self._infer(batch[:middle])
        self._infer(batch[middle:])

    def _settle(self, image: _Image, outcome: Outcome) -> None:
        with self._changed:
            if image not in self._admitted:
                return  # refused meanwhile, when the batcher stopped
            self._admitted.remove(image)
            self._admitted_bytes -= image.size_bytes
            if self._refusing is not None:
                self._changed.notify_all()  # stop() waits for the last one
        _note_settled(image, outcome)
        image.ticket.set_result(image.index, outcome)

    def _forget_if_given_up(self, future: Future[list[Outcome]]) -> None:
        if future.cancelled():
            self._settle_all(future, ServiceError("The request was given up."))

    def _settle_all(self, future: Future[list[Outcome]], outcome: PromptServeError) -> None:
        """Take what is left of a request out of the queue."""
        with self._changed:
            left = [image for image in self._admitted if image.ticket.future is future]
            for image in left:
                image.data = b""  # the decode pool still holds the image
                self._settle(image, outcome)
            self._ready = deque(image for image in self._ready if image in self._admitted)

    def _refuse_all(self, why: str) -> None:
        with self._changed:
            left = list(self._admitted)
        for image in left:
            self._settle(image, NotReady(why, retry_after_s=1.0))


def _yield_to_inference() -> None:
    """Give way to the encoder where both want the same core: it is what all wait for, and the
    images of its next batch are not needed before this one is done."""
    if sys.platform == "linux":  # elsewhere priorities belong to processes, not to threads
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _DECODE_NICENESS)


def _note_waits(batch: Sequence[_Image]) -> None:
    """These images' wait in the queue ends now."""
    now = time.monotonic()
    for image in batch:
        image.ticket.timings.add("queue", image.ready_at, now)
        metrics.queue_wait_seconds.observe(now - image.ready_at)


def _note_batch(batch: Sequence[_Image], started: float, ended: float) -> None:
    """A batch went through the encoder; its time counts once to every request in it."""
    metrics.batch_images.observe(len(batch))
    metrics.inference_seconds.observe(ended - started)
    for ticket in {image.ticket for image in batch}:
        ticket.timings.add("inference", started, ended)


def _note_settled(image: _Image, outcome: Outcome) -> None:
    metrics.queue_images.dec()
    metrics.queue_bytes.dec(image.size_bytes)
    if image.ticket.future.cancelled():
        metrics.images_abandoned.inc()
    elif isinstance(outcome, PromptServeError):
        metrics.images.labels(metrics.result_of(outcome)).inc()
    else:
        metrics.images_answered.inc()


def _size_bytes(given: Given) -> int:
    return len(given) if isinstance(given, bytes) else given.nbytes


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The image waited in the queue until the request's time was up. "
        "Send fewer at once, or give the request more time."
    )


def _failed(doing: str, error: BaseException) -> ServiceError:
    return ServiceError(
        f"Something went wrong here while {doing} ({type(error).__name__}); "
        f"the service's log has the reason."
    )
