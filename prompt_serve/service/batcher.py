"""Images of many requests -> image features, in batches: whatever waits when the device is free.

    submit -> [decode pool: bytes -> pixels] -> ready -> [one inference thread: pixels -> features]

Decoding of the next images overlaps with the encoding of the batch before. Every image has an
outcome of its own, features or an error; a request's future is done when its last image is.
The queue is bounded in images. Images whose request was given up or is past its deadline are
not run.
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
from prompt_serve.types import FloatArray, PixelArray

Outcome = FloatArray | PromptServeError

_DECODE_NICENESS = 5

_log = logging.getLogger(__name__)


class _Ticket:
    """The images of one request; ``future`` is done when the last of them has an outcome."""

    def __init__(self, size: int, deadline: float) -> None:
        self.future: Future[list[Outcome]] = Future()
        self.deadline = deadline
        self._outcomes: list[Outcome | None] = [None] * size
        self._missing = size
        self._lock = threading.Lock()

    def settle(self, index: int, outcome: Outcome) -> None:
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
            return DeadlineExceeded(
                "The image waited in the queue until the request's time was up. "
                "Send fewer at once, or give the request more time."
            )
        return None


class _Image:
    """One image on its way."""

    __slots__ = ("data", "index", "pixels", "ready_at", "ticket")

    def __init__(self, data: bytes, ticket: _Ticket, index: int) -> None:
        self.data = data
        self.ticket = ticket
        self.index = index
        self.pixels: PixelArray | None = None
        self.ready_at = 0.0


class Batcher:
    """Decode pool, queue and inference thread of one device.

    Args:
        decode: bytes of an image file -> (S, S, 3) pixels; raises PromptServeError for bad ones.
        encode: (B, S, S, 3) pixels -> (B, E) features.
        max_batch: the most images that are encoded together.
        max_queue_images: admitted and not yet answered; beyond it requests are refused.
        max_queue_delay_ms: how long the first image of a batch waits for more to join it. 0 is
            best unless the device is far from busy and large batches are much cheaper.
        decode_threads: size of the decode pool.
    """

    def __init__(
        self,
        decode: Callable[[bytes], PixelArray],
        encode: Callable[[PixelArray], FloatArray],
        *,
        max_batch: int,
        max_queue_images: int,
        max_queue_delay_ms: float,
        decode_threads: int,
    ) -> None:
        self._decode = decode
        self._encode = encode
        self._max_batch = max_batch
        self._max_queue_images = max_queue_images
        self._max_queue_delay_s = max_queue_delay_ms / 1000
        self._pool = ThreadPoolExecutor(
            decode_threads, thread_name_prefix="decode", initializer=_yield_to_inference
        )
        self._changed = threading.Condition()  # guards everything below
        self._ready: deque[_Image] = deque()
        self._admitted: set[_Image] = set()
        self._refusing: str | None = None  # why nothing more is admitted
        self._stopped = False
        self._running_since: float | None = None
        self._last_success = float("-inf")
        self._images_per_s = 0.0
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

    def submit(self, images: Sequence[bytes], deadline: float) -> Future[list[Outcome]]:
        """Queue the images of one request.

        Args:
            images: at least one file's bytes.
            deadline: of ``time.monotonic()``, after which they are not run any more.

        Returns:
            A future of one outcome an image, in their order. Cancel it to give the request up.

        Raises:
            Overloaded: the queue is full; says when to try again.
            NotReady: the batcher was stopped, or its inference thread died.
        """
        ticket = _Ticket(len(images), deadline)
        admitted = [_Image(data, ticket, index) for index, data in enumerate(images)]
        with self._changed:
            self._check_open()
            self._check_room(len(images))
            self._admitted.update(admitted)
        for image in admitted:
            self._pool.submit(self._prepare, image)
        return ticket.future

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

    def _check_open(self) -> None:
        if self._refusing is not None:
            raise NotReady(self._refusing, retry_after_s=1.0)

    def _check_room(self, count: int) -> None:
        waiting = len(self._admitted)
        if waiting + count > self._max_queue_images:
            wait_s = min(30.0, max(0.1, waiting / self._images_per_s)) if self._images_per_s else 1
            raise Overloaded(
                f"{waiting} images are waiting, {count} more exceed the {self._max_queue_images} "
                f"that are queued at most. Try again in {wait_s:.1f} s.",
                retry_after_s=round(wait_s, 1),
                waiting=waiting,
            )

    def _prepare(self, image: _Image) -> None:
        """In the decode pool: bytes -> pixels, then on to the inference thread."""
        if refusal := image.ticket.refusal:
            self._settle(image, refusal)
            return
        try:
            image.pixels = self._decode(image.data)
        except PromptServeError as error:
            self._settle(image, error)
            return
        # Nobody reads this pool's futures: an unforeseen error would leave the request hanging.
        except BaseException as error:
            _log.exception("an image could not be prepared")
            self._settle(image, _failed("preparing the image", error))
            return
        image.data = b""
        with self._changed:
            image.ready_at = time.monotonic()
            self._ready.append(image)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._infer(batch)
        # A fault in this module. The thread ends, but those who wait must not wait for ever.
        except BaseException:
            _log.critical("the inference thread died", exc_info=True)
            with self._changed:
                self._refusing = "The inference thread has died; the service must be restarted."
                self._changed.notify_all()
            self._refuse_all(self._refusing)

    def _next_batch(self) -> list[_Image]:
        """Wait for images; none means stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._stopped)
            if self._ready and self._max_queue_delay_s > 0:
                self._wait_for_more()
            if self._stopped:
                return []
            return [self._ready.popleft() for _ in range(min(len(self._ready), self._max_batch))]

    def _wait_for_more(self) -> None:
        left = self._ready[0].ready_at + self._max_queue_delay_s - time.monotonic()
        self._changed.wait_for(
            lambda: len(self._ready) >= self._max_batch or self._stopped, max(0.0, left)
        )

    def _infer(self, batch: list[_Image]) -> None:
        wanted = []
        for image in batch:
            if refusal := image.ticket.refusal:
                self._settle(image, refusal)
            else:
                wanted.append(image)
        if not wanted:
            return
        self._running_since = started = time.monotonic()
        try:
            features = self._encode(np.stack([i.pixels for i in wanted if i.pixels is not None]))
        # ONNX Runtime's exceptions share no base but Exception; one batch may fail, e.g. for lack
        # of memory, and the next may not.
        except Exception as error:
            self._running_since = None
            self._retry_in_halves(wanted, error)
            return
        self._note_speed(len(wanted), started)
        for image, row in zip(wanted, features, strict=True):
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

    def _note_speed(self, count: int, started: float) -> None:
        self._running_since = None
        self._last_success = time.monotonic()
        speed = count / max(1e-6, self._last_success - started)
        self._images_per_s = 0.8 * self._images_per_s + 0.2 * speed if self._images_per_s else speed

    def _settle(self, image: _Image, outcome: Outcome) -> None:
        with self._changed:
            if image not in self._admitted:
                return  # refused meanwhile, when the batcher stopped
            self._admitted.remove(image)
            if self._refusing is not None:
                self._changed.notify_all()  # stop() waits for the last one
        image.ticket.settle(image.index, outcome)

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


def _failed(doing: str, error: BaseException) -> ServiceError:
    return ServiceError(
        f"Something went wrong here while {doing} ({type(error).__name__}); "
        f"the service's log has the reason."
    )
