"""Compute class features at low priority, in turns, so that uploads do not slow down requests.

On Linux a thread has its own priority, and new threads inherit it. The text encoder's session is
opened in such a thread (see ``Engine``), so that ONNX Runtime's own threads have low priority too.
"""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from prompt_serve.errors import DeadlineExceeded, NotReady
from prompt_serve.prompts.class_features import EncodeText
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.service.observability import metrics
from prompt_serve.service.request_context import current_request
from prompt_serve.service.scheduling.thread_priority import lower_priority
from prompt_serve.service.scheduling.turn_lock import TurnLock
from prompt_serve.types import FloatArray

NICENESS = 10  # about a tenth of the CPU time of a normal thread that competes for the same core
_LARGE = 10_000  # classes; the features of larger prompts are computed one prompt at a time

_T = TypeVar("_T")


def at_low_priority(work: Callable[[], _T]) -> _T:
    """Run ``work`` in a low-priority thread and return its result."""
    initializer = partial(lower_priority, NICENESS)
    with ThreadPoolExecutor(1, "low-priority", initializer=initializer) as pool:
        return pool.submit(work).result()


class FeatureQueue:
    """Computes class features in turns of chunks; simultaneous callers share one computation.

    A prompt of a few classes is done after a few turns, however many classes others have.

    Args:
        encode_text: encodes a chunk of classes.
    """

    def __init__(self, encode_text: EncodeText) -> None:
        self._encode_text = encode_text
        self._encoding = TurnLock()
        self._large = TurnLock()
        self._is_closed = False
        self._running: dict[str, Future[FloatArray]] = {}
        self._lock = threading.Lock()

    def run(
        self, version: str, n_classes: int, compute: Callable[[EncodeText], FloatArray]
    ) -> FloatArray:
        """Return the result of ``compute`` for ``version``; blocks until it is computed.

        Args:
            version: key of the result.
            n_classes: number of classes.
            compute: computes the result with the text encoder it is given.

        Raises:
            DeadlineExceeded: the current request's deadline passed.
            NotReady: the service is stopping.
            Exception: anything that ``compute`` raises, in every caller that waits for it.
        """
        with current_request().timings.during("text"):
            while True:
                with self._lock:
                    running = self._running.get(version)
                    is_mine = running is None
                    if running is None:
                        running = self._running[version] = Future()
                if is_mine:
                    self._compute(version, running, n_classes, compute)
                try:
                    return _result(running)
                except DeadlineExceeded:
                    deadline = current_request().deadline
                    if is_mine or (deadline is not None and not deadline.left_s):
                        raise
                    # That of the request which computed; this one goes on.

    def close(self) -> None:
        """End all computations after the chunk of classes at hand."""
        self._is_closed = True

    def _compute(
        self,
        version: str,
        running: Future[FloatArray],
        n_classes: int,
        compute: Callable[[EncodeText], FloatArray],
    ) -> None:
        request = current_request()
        # Each holds hundreds of megabytes.
        large = (
            self._large.hold(request.turn, request.deadline)
            if n_classes > _LARGE
            else contextlib.nullcontext()
        )
        run = copy_context().run
        try:
            with large, metrics.text_encoding_seconds.time():
                result = at_low_priority(lambda: run(compute, self._encode_in_turn))
        # Whoever waits for the result gets the error, whatever it is.
        except BaseException as error:
            outcome = partial(running.set_exception, error)
        else:
            outcome = partial(running.set_result, result)
        with self._lock:
            del self._running[version]
        outcome()

    def _encode_in_turn(self, sequences: Sequences) -> FloatArray:
        request = current_request()
        with self._encoding.hold(request.turn, request.deadline):
            if self._is_closed:
                raise NotReady("The service is stopping.", retry_after_s=1.0)
            if request.deadline is not None and not request.deadline.left_s:
                raise request.deadline.exceeded(
                    "while class features were computed. Send fewer classes, or allow more time."
                )
            return self._encode_text(sequences)


def _result(running: Future[FloatArray]) -> FloatArray:
    deadline = current_request().deadline
    try:
        return running.result(None if deadline is None else deadline.left_s)
    except TimeoutError as error:
        if deadline is None or running.done():  # an error of the computation
            raise
        raise deadline.exceeded("while class features were computed. Allow more time.") from error
