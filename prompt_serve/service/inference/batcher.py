"""Encode the images of many requests in batches: those that are ready when the device is free.

    submit -> [decode pools: bytes -> pixels] -> ready -> [one inference thread: pixels -> features]

Images are decoded, and batches filled, in turns of the callers, then of their requests
(``scheduling.turns``): whoever sends many images delays others by one image per turn.
The next images are decoded while the current batch is encoded, at most a batch ahead per request.
Images that take long to decode have a pool of their own, and small ones never wait for them. An
image is decoded once and encoded in one pass for each of the prompts that its request has for the
image tower; passes of different prompts share a batch. Every image has its own outcome, features or
an error, and a request's future is done when its last image is. The queue is bounded in passes and
in bytes. Images of a cancelled request leave it at once; images past their deadline are not run.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial

import numpy as np

from prompt_serve.errors import (
    DeadlineExceeded,
    NotReady,
    Overloaded,
    PromptServeError,
    ServiceError,
)
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.service.observability import metrics
from prompt_serve.service.request_context import current_request
from prompt_serve.service.scheduling.fair_pool import FairPool
from prompt_serve.service.scheduling.loop_results import at_end_of_step
from prompt_serve.service.scheduling.thread_priority import lower_priority
from prompt_serve.service.scheduling.turns import Turns
from prompt_serve.types import FloatArray, PixelArray

ImageData = bytes | PixelArray  # an image file, or (S, S, 3) pixels for the encoder
Outcome = FloatArray | PromptServeError  # (V, E), a row for each pass of the image
NO_ROWS: tuple[ImageRows | None, ...] = (None,)  # one pass, through the plain image tower

# The inference thread goes first: the images being decoded are not needed before its batch is done.
_DECODE_NICENESS = 5
_DECAY = 0.8  # per batch, of earlier measurements
_MAX_RETRY_S = 60.0

_log = logging.getLogger(__name__)


class PendingRequest:
    """Images of one request; ``future`` is done when the last of them has an outcome."""

    def __init__(self, size: int, deadline: float, rows: Sequence[ImageRows | None]) -> None:
        self.future: Future[list[Outcome]] = Future()
        self.rows = rows  # of the passes of every image
        self.deadline = deadline
        self.timings = current_request().timings  # constructed in the request's context
        self.turn = current_request().turn._replace(request=self)
        self.undecoded: deque[_QueuedImage] = deque()  # guarded by the batcher
        self._outcomes: list[Outcome | None] = [None] * size
        self._missing = size
        self._lock = threading.Lock()

    def set_result(self, index: int, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[index] = outcome
            self._missing -= 1
            done = self._missing == 0
        if done:
            with suppress(InvalidStateError):  # cancelled meanwhile
                self.future.set_result([o for o in self._outcomes if o is not None])

    def skip_reason(self, now: float) -> PromptServeError | None:
        """Return the error of images that need not be run any more; None if they must be."""
        if self.future.cancelled():
            return _cancelled()
        if now > self.deadline:
            return _deadline_exceeded()
        return None


class _QueuedImage:
    """One image in the queue."""

    __slots__ = (
        "_features",
        "admitted_at",
        "data",
        "index",
        "pixels",
        "ready_at",
        "request",
        "size_bytes",
    )

    def __init__(
        self, image: ImageData, request: PendingRequest, index: int, admitted_at: float
    ) -> None:
        self.data: bytes
        self.pixels: PixelArray | None
        self.data, self.pixels = (image, None) if isinstance(image, bytes) else (b"", image)
        self.size_bytes = _size_bytes(image)
        self.request = request
        self.index = index
        self.admitted_at = admitted_at
        self.ready_at = 0.0
        self._features: dict[int, FloatArray] = {}  # by pass; of the inference thread

    @property
    def passes(self) -> int:
        """Passes through the image encoder."""
        return len(self.request.rows)

    def encoded(self, pass_index: int, features: FloatArray) -> FloatArray | None:
        """Keep the features (E,) of a pass; return those of all passes (V, E) with the last."""
        self._features[pass_index] = features
        if len(self._features) < self.passes:
            return None
        return np.stack([self._features[index] for index in range(self.passes)])


_Pass = tuple[_QueuedImage, int]  # image, and index of its pass


class _DrainRate:
    """Images per second that leave the queue while it is not empty."""

    def __init__(self) -> None:
        self._images = 0.0  # both decay alike, so that their ratio follows the last batches
        self._seconds = 0.0
        self._last = -math.inf

    def add_batch(self, images: int, since: float, ended: float) -> None:
        """Count a finished batch whose first image was admitted at ``since``."""
        busy_s = max(1e-6, ended - max(since, self._last))
        self._images = _DECAY * self._images + images
        self._seconds = _DECAY * self._seconds + busy_s
        self._last = ended

    def seconds_for(self, images: float) -> float:
        """Estimate the time to drain ``images``; 1 s before the first batch."""
        if self._images == 0.0:
            return 1.0
        return images * self._seconds / self._images


class Batcher:
    """Decode pool, queue and inference thread of one device.

    Args:
        decode: bytes of an image file -> (S, S, 3) pixels; raises PromptServeError for bad files.
        encode: (B, S, S, 3) pixels, and the rows of each image's prompt or None -> (B, E) features.
        max_batch: maximum number of passes per batch.
        max_queue_images: maximum number of passes of admitted, unanswered images; beyond it
            requests are rejected.
        max_queue_bytes: maximum size of the same images, as received.
        max_queue_delay_ms: maximum time that a ready image waits for others to join its batch
            while the device is free. 0 is best unless the device is mostly idle and large batches
            are much cheaper.
        decode_threads: size of each decode pool.
        decode_quickly: does what ``decode`` does, or returns None at once if that takes long.
        one_round: when several requests wait, take at most one image per request and batch. For
            devices on which a large batch takes as long as its images alone: those who wait for the
            next batch then wait less, and nothing is lost.
        clock: time in seconds, for deadlines and for what is measured.
    """

    def __init__(
        self,
        decode: Callable[[bytes], PixelArray],
        encode: Callable[[PixelArray, Sequence[ImageRows | None]], FloatArray],
        *,
        max_batch: int,
        max_queue_images: int,
        max_queue_bytes: int,
        max_queue_delay_ms: float,
        decode_threads: int,
        one_round: bool,
        decode_quickly: Callable[[bytes], PixelArray | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decode = decode
        self._decode_quickly = decode_quickly or decode
        self._encode = encode
        self._max_batch = max_batch
        self._one_round = one_round
        self._clock = clock
        self._max_queue_images = max_queue_images
        self._max_queue_bytes = max_queue_bytes
        self._max_queue_delay_s = max_queue_delay_ms / 1000
        priority = partial(lower_priority, _DECODE_NICENESS)
        self._pool = FairPool(decode_threads, "decode", initializer=priority)
        # Most of its threads wait for a process that decodes.
        self._long_pool = FairPool(decode_threads, "decode-long", initializer=priority)
        self._changed = threading.Condition()  # guards everything below
        self._ready: Turns[_Pass] = Turns()
        self._admitted: set[_QueuedImage] = set()
        self._admitted_passes = 0
        self._admitted_bytes = 0
        self._closed_reason: str | None = None  # set when nothing more is admitted
        self._stopped = False
        self._running_since: float | None = None
        self._last_success = -math.inf
        self._drain_rate = _DrainRate()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while the inference thread runs; only ``stop`` or a bug of this module ends it."""
        return self._thread.is_alive()

    @property
    def last_success(self) -> float:
        """Time on the clock of the last batch that succeeded."""
        return self._last_success

    @property
    def running_for_s(self) -> float:
        """Time that the current batch has been running; 0 between batches."""
        since = self._running_since
        return 0.0 if since is None else self._clock() - since

    def submit(
        self,
        images: Sequence[ImageData],
        deadline: float,
        rows: Sequence[ImageRows | None] = NO_ROWS,
    ) -> Future[list[Outcome]]:
        """Queue the images of one request.

        Args:
            images: at least one.
            deadline: on the clock; images are not run after it.
            rows: of the V passes of every image: the vectors of an image prompt, or None.

        Returns:
            Future of one outcome per image, features (V, E) or an error, in their order.
            Cancelling it takes the request's images out of the queue at once.

        Raises:
            Overloaded: the queue is full, and no caller holds more of it than this one; says when
                to retry. If one does, its newest requests end with Overloaded instead.
            NotReady: the batcher was stopped, or its inference thread died.
        """
        request = PendingRequest(len(images), deadline, rows)
        now = self._clock()
        admitted = [_QueuedImage(image, request, index, now) for index, image in enumerate(images)]
        size_bytes = sum(image.size_bytes for image in admitted)
        with self._changed:
            for displaced, error in self._room(len(images) * len(rows), size_bytes):
                self._finish_request(displaced.future, error)
            self._admitted.update(admitted)
            self._admitted_passes += len(images) * len(rows)
            self._admitted_bytes += size_bytes
            request.undecoded.extend(image for image in admitted if image.pixels is None)
        metrics.queue_images.inc(len(admitted))
        metrics.queue_bytes.inc(size_bytes)
        request.future.add_done_callback(self._drop_if_cancelled)
        at_end_of_step(partial(self._begin, request, admitted))
        return request.future

    def _begin(self, request: PendingRequest, images: Sequence[_QueuedImage]) -> None:
        """Let the threads have the images of an admitted request."""
        for image in images:
            if image.pixels is not None:
                self._mark_ready(image)
        for _ in range(min(self._max_batch, len(request.undecoded))):
            self._decode_next(request)

    def check_room(self, passes: int, size_bytes: int) -> None:
        """Raise what ``submit`` would raise for this many passes, images of ``size_bytes``."""
        with self._changed:
            self._room(passes, size_bytes)

    def _room(self, passes: int, size_bytes: int) -> list[tuple[PendingRequest, Overloaded]]:
        """Return the requests that have to end for a new one; raise as ``submit`` does.

        Whoever holds most of a full queue gives up newest requests first, as long as it holds more
        than the new request's caller would: a full queue has room for callers with little in it.
        """
        error = self._excess(passes, size_bytes, 0, 0)
        if error is None:
            return []
        caller = current_request().turn.caller
        requests = {image.request: image.admitted_at for image in self._admitted}
        newest_first = sorted(requests, key=requests.__getitem__, reverse=True)
        displaced: list[PendingRequest] = []
        left_passes = left_bytes = 0
        while self._excess(passes, size_bytes, left_passes, left_bytes) is not None:
            held: Counter[Hashable] = Counter()
            for image in self._admitted:
                if image.request not in displaced:
                    held[image.request.turn.caller] += image.passes
            [(largest, most)] = held.most_common(1) or [(caller, 0)]
            if largest == caller or most <= held[caller] + passes:
                raise error
            newest = next(
                one for one in newest_first if one not in displaced and one.turn.caller == largest
            )
            displaced.append(newest)
            images = [image for image in self._admitted if image.request is newest]
            left_passes += sum(image.passes for image in images)
            left_bytes += sum(image.size_bytes for image in images)
        return [(request, error) for request in displaced]

    def _excess(
        self, passes: int, size_bytes: int, left_passes: int, left_bytes: int
    ) -> Overloaded | None:
        """Return the error of a queue that has no room, also without what is about to leave it."""
        with self._changed:
            if self._closed_reason is not None:
                raise NotReady(self._closed_reason, retry_after_s=1.0)
            waiting = self._admitted_passes - left_passes
            excess = waiting + passes - self._max_queue_images
            if excess > 0:
                limit = f"{passes} more would exceed the maximum of {self._max_queue_images}"
                return self._overloaded(waiting, limit, excess)
            waiting_bytes = self._admitted_bytes - left_bytes
            excess_bytes = waiting_bytes + size_bytes - self._max_queue_bytes
            if excess_bytes > 0:
                limit = (
                    f"{waiting_bytes:,} bytes, {size_bytes:,} more would exceed the "
                    f"maximum of {self._max_queue_bytes:,}"
                )
                share = excess_bytes / max(1, waiting_bytes)
                return self._overloaded(waiting, limit, min(1.0, share) * waiting)
        return None

    def expire(self, future: Future[list[Outcome]]) -> None:
        """End a request at its deadline: images without an outcome get DeadlineExceeded."""
        self._finish_request(future, _deadline_exceeded())

    def stop(self, timeout_s: float) -> None:
        """Admit nothing more, finish admitted images within ``timeout_s``, fail the rest."""
        with self._changed:
            self._closed_reason = "The service is stopping."
            self._changed.wait_for(lambda: not self._admitted or not self.alive, timeout_s)
            self._stopped = True
            self._changed.notify_all()
        for pool in (self._pool, self._long_pool):
            pool.shutdown(wait=False)
        self._fail_all("The service is stopping.")
        self._thread.join(timeout=1.0)

    def _overloaded(self, waiting: int, limit: str, excess: float) -> Overloaded:
        """Return the error, with the time until ``excess`` images will have left the queue."""
        wait_s = min(_MAX_RETRY_S, max(0.1, self._drain_rate.seconds_for(excess)))
        return Overloaded(
            f"{waiting} images are waiting, {limit}. Retry in {wait_s:.1f} s.",
            retry_after_s=round(wait_s, 1),
            waiting=waiting,
        )

    def _decode_next(self, request: PendingRequest) -> None:
        """Let the decode pool have the next image of a request, if any is left."""
        with self._changed:
            if request.undecoded and not self._stopped:
                self._pool.start(request.turn, self._prepare, request.undecoded.popleft())

    def _prepare(self, image: _QueuedImage) -> None:
        """Decode an image, in the decode pool, or let the other pool have it."""
        self._decode_to_pixels(image, self._decode_quickly)

    def _prepare_long(self, image: _QueuedImage) -> None:
        """Decode an image that takes long."""
        self._decode_to_pixels(image, self._decode)

    def _decode_to_pixels(
        self, image: _QueuedImage, decode: Callable[[bytes], PixelArray | None]
    ) -> None:
        """Decode an image and hand it to the inference thread."""
        failure = image.request.skip_reason(self._clock())
        with self._changed:
            if image not in self._admitted:
                return  # its request has ended, and with it all images that are not decoded yet
            data, image.data = image.data, b""
        if failure is None:
            try:
                image.pixels = self._timed_decode(image, data, decode)
            except PromptServeError as error:
                failure = error
            # Nobody reads what this call raises: an unexpected error would leave the request
            # hanging.
            except BaseException as error:
                _log.exception("an image could not be decoded")
                failure = _failed("decoding the image", error)
        if failure is not None:
            self._finish(image, failure)
            self._decode_next(image.request)
        elif image.pixels is None:
            self._decode_long(image, data)
        else:
            self._mark_ready(image)

    def _decode_long(self, image: _QueuedImage, data: bytes) -> None:
        """Let the pool for such images have one that takes long to decode."""
        with self._changed:
            if image in self._admitted and not self._stopped:
                image.data = data
                self._long_pool.start(image.request.turn, self._prepare_long, image)

    def _timed_decode(
        self, image: _QueuedImage, data: bytes, decode: Callable[[bytes], PixelArray | None]
    ) -> PixelArray | None:
        started = self._clock()
        decoded = True  # or failed
        try:
            pixels = decode(data)
            decoded = pixels is not None
            return pixels
        finally:
            if decoded:
                ended = self._clock()
                image.request.timings.add("decode", started, ended)
                metrics.decode_seconds.observe(ended - started)

    def _mark_ready(self, image: _QueuedImage) -> None:
        with self._changed:
            if image not in self._admitted:
                return  # cancelled while it was decoded
            image.ready_at = self._clock()
            passes = [(image, index) for index in range(image.passes)]
            self._ready.extend(image.request.turn, passes)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                if batch:
                    self._infer(batch)
        # A bug of this module. The thread ends, but pending requests must not wait forever.
        except BaseException:
            _log.critical("the inference thread died", exc_info=True)
            with self._changed:
                self._closed_reason = "The inference thread died; restart the service."
                self._changed.notify_all()
            self._fail_all(self._closed_reason)

    def _next_batch(self) -> list[_Pass] | None:
        """Wait for the next batch; None if the batcher was stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._stopped)
            if self._ready:
                self._wait_for_more()
            batch = None if self._stopped else self._take_batch()
        _record_waits(batch or [], self._clock())
        return batch

    def _take_batch(self) -> list[_Pass]:
        """Take the next passes that must be run; none if all were cancelled meanwhile."""
        size = self._max_batch
        if self._one_round and self._ready.n_requests > 1:
            size = min(size, self._ready.n_requests)
        batch: list[_Pass] = []
        while len(batch) < size and (next_pass := self._ready.pop()) is not None:
            image, index = next_pass
            if index == image.passes - 1:
                self._decode_next(image.request)
            if reason := image.request.skip_reason(self._clock()):
                self._finish(image, reason)
            elif image in self._admitted:  # not if another pass of it failed
                batch.append((image, index))
        return batch

    def _wait_for_more(self) -> None:
        # Counted from when the first image was ready: later ones do not prolong the wait.
        end = self._ready.first()[0].ready_at + self._max_queue_delay_s
        self._changed.wait_for(
            lambda: len(self._ready) >= self._max_batch or self._stopped or self._clock() >= end,
            max(0.0, end - self._clock()),
        )

    def _infer(self, batch: list[_Pass]) -> None:
        self._running_since = started = self._clock()
        try:
            features = self._encode(
                np.stack([image.pixels for image, _ in batch if image.pixels is not None]),
                [image.request.rows[index] for image, index in batch],
            )
        # ONNX Runtime's exceptions share no base class but Exception. One batch may fail, e.g. for
        # lack of memory, while the next does not.
        except Exception as error:
            self._running_since = None
            self._retry_in_halves(batch, error)
            return
        self._running_since = None
        self._last_success = ended = self._clock()
        _record_batch(batch, started, ended)
        since = min(image.admitted_at for image, _ in batch)
        with self._changed:
            self._drain_rate.add_batch(len(batch), since, ended)
        self._finish_all(
            [
                (image, of_all)
                for (image, index), row in zip(batch, features, strict=True)
                if (of_all := image.encoded(index, row)) is not None
            ]
        )

    def _retry_in_halves(self, batch: list[_Pass], error: Exception) -> None:
        """Retry a failed batch in halves, so that one image does not fail the others."""
        if len(batch) == 1:
            _log.error("the image encoder failed", exc_info=error)
            self._finish(batch[0][0], _failed("encoding the image", error))
            return
        middle = len(batch) // 2
        self._infer(batch[:middle])
        self._infer(batch[middle:])

    def _finish(self, image: _QueuedImage, outcome: Outcome) -> None:
        self._finish_all([(image, outcome)])

    def _finish_all(self, outcomes: Iterable[tuple[_QueuedImage, Outcome]]) -> None:
        finished: list[tuple[_QueuedImage, Outcome]] = []
        with self._changed:
            for image, outcome in outcomes:
                if image not in self._admitted:
                    continue  # finished meanwhile, for example when the batcher stopped
                self._admitted.remove(image)
                self._admitted_passes -= image.passes
                self._admitted_bytes -= image.size_bytes
                finished.append((image, outcome))
            if self._closed_reason is not None:
                self._changed.notify_all()  # stop() waits for the last image
        _count_finished(finished)
        for image, outcome in finished:
            image.request.set_result(image.index, outcome)

    def _drop_if_cancelled(self, future: Future[list[Outcome]]) -> None:
        if future.cancelled():
            self._finish_request(future, _cancelled())

    def _finish_request(self, future: Future[list[Outcome]], outcome: PromptServeError) -> None:
        """Give ``outcome`` to the images of a request that are still in the queue."""
        with self._changed:
            left = [image for image in self._admitted if image.request.future is future]
            for image in left:
                image.data = b""  # the decode pool still refers to the image
            self._finish_all((image, outcome) for image in left)
            if left:
                left[0].request.undecoded.clear()
                self._ready.discard(left[0].request.turn)

    def _fail_all(self, reason: str) -> None:
        with self._changed:
            left = list(self._admitted)
        self._finish_all((image, NotReady(reason, retry_after_s=1.0)) for image in left)


def _record_waits(batch: Sequence[_Pass], now: float) -> None:
    """Record the time in the queue of a batch that starts now."""
    for image, _ in batch:
        image.request.timings.add("queue", image.ready_at, now)
        metrics.queue_wait_seconds.observe(now - image.ready_at)


def _record_batch(batch: Sequence[_Pass], started: float, ended: float) -> None:
    """Record an encoded batch; its time counts once for every request in it."""
    metrics.batch_images.observe(len(batch))
    prompted = sum(image.request.rows[index] is not None for image, index in batch)
    if prompted:
        metrics.prompted_passes.inc(prompted)
    if prompted < len(batch):
        metrics.plain_passes.inc(len(batch) - prompted)
    metrics.inference_seconds.observe(ended - started)
    for request in {image.request for image, _ in batch}:
        request.timings.add("inference", started, ended)


def _count_finished(finished: Sequence[tuple[_QueuedImage, Outcome]]) -> None:
    """Count images that have left the queue, each series once for all of them."""
    if not finished:
        return
    metrics.queue_images.dec(len(finished))
    metrics.queue_bytes.dec(sum(image.size_bytes for image, _ in finished))
    for result, count in Counter(_result_of(image, outcome) for image, outcome in finished).items():
        metrics.images_of(result).inc(count)


def _result_of(image: _QueuedImage, outcome: Outcome) -> str:
    if image.request.future.cancelled():
        return "abandoned"
    return metrics.result_of(outcome) if isinstance(outcome, PromptServeError) else "answered"


def _size_bytes(image: ImageData) -> int:
    return len(image) if isinstance(image, bytes) else image.nbytes


def _cancelled() -> ServiceError:
    return ServiceError("The request was cancelled.")


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The request's deadline passed while the image waited in the queue. "
        "Send fewer images at once, or allow more time."
    )


def _failed(doing: str, error: BaseException) -> ServiceError:
    return ServiceError(
        f"The service failed while {doing} ({type(error).__name__}); "
        f"the service's log has the reason."
    )
