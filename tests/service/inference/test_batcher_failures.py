"""What callers and the log are told when something fails in the batcher, and what it retries."""

import logging
import math
import time
from collections.abc import Callable

import numpy as np
import pytest

from prompt_serve.errors import DeadlineExceeded, NotReady, Overloaded, ServiceError
from prompt_serve.service.inference.batcher import Outcome
from prompt_serve.types import FloatArray, PixelArray
from tests.service.inference.test_batcher import Gate, batcher, first_pixel, outcomes, soon

TIMEOUT_S = 20.0
ERRORS = (RuntimeError, KeyError, MemoryError, ValueError, OSError)


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def texts(found: list[Outcome]) -> list[str]:
    return [str(outcome) for outcome in found if isinstance(outcome, Exception)]


@pytest.mark.parametrize("kind", ERRORS)
def test_a_decoder_that_fails_is_named_and_its_error_is_logged(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def decode(data: bytes) -> PixelArray:
        raise kind("secret")

    with caplog.at_level(logging.ERROR), batcher(first_pixel, decode=decode) as running:
        found = outcomes(running.submit([b"\x01"], soon()))

    assert texts(found) == [
        f"The service failed while decoding the image ({kind.__name__}); the service's log has "
        f"the reason."
    ]
    assert type(found[0]) is ServiceError
    (record,) = (r for r in caplog.records if r.getMessage() == "an image could not be decoded")
    assert record.exc_info is not None
    assert record.exc_info[0] is kind


@pytest.mark.parametrize("kind", ERRORS)
def test_an_encoder_that_fails_is_named_and_its_error_is_logged(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def encode(pixels: PixelArray) -> FloatArray:
        raise kind("secret")

    with caplog.at_level(logging.ERROR), batcher(encode) as running:
        found = outcomes(running.submit([b"\x01"], soon()))

    assert texts(found) == [
        f"The service failed while encoding the image ({kind.__name__}); the service's log has "
        f"the reason."
    ]
    (record,) = (r for r in caplog.records if r.getMessage() == "the image encoder failed")
    assert record.exc_info is not None
    assert record.exc_info[0] is kind


def halves(numbers: list[int], bad: set[int]) -> list[list[int]]:
    """Return the batches that find the bad images: each that fails is tried again in halves."""
    if len(numbers) == 1 or not bad & set(numbers):
        return [numbers]
    middle = len(numbers) // 2
    return [numbers, *halves(numbers[:middle], bad), *halves(numbers[middle:], bad)]


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("bad", [{1}, {2}, {1, 2}, {2, 5}, {1, 3, 8}])
def test_a_failed_batch_is_tried_again_in_halves(size: int, bad: set[int]) -> None:
    gate = Gate()
    batches: list[list[int]] = []

    def encode(pixels: PixelArray) -> FloatArray:
        numbers = [int(number) for number in pixels[:, 0, 0, 0]]
        batches.append(numbers)
        if bad & set(numbers):
            raise RuntimeError("bad")
        return gate(pixels)

    with batcher(encode, max_batch=8) as running:
        blocking = running.submit([np.full((2, 2, 3), 200, np.uint8)], soon())
        assert gate.entered.wait(TIMEOUT_S)
        images = [np.full((2, 2, 3), n, np.uint8) for n in range(1, size + 1)]
        request = running.submit(images, soon())
        gate.open.set()
        outcomes(blocking)
        found = outcomes(request)

    for number, outcome in enumerate(found, start=1):
        assert isinstance(outcome, ServiceError) == (number in bad)
        if not isinstance(outcome, Exception):
            assert np.asarray(outcome).item() == number
    assert batches[1:] == halves(list(range(1, size + 1)), bad)


def test_a_passed_deadline_says_what_to_do() -> None:
    gate = Gate()
    with batcher(gate) as running:
        blocking = running.submit([b"\x01"], soon())
        assert gate.entered.wait(TIMEOUT_S)
        late = running.submit([b"\x02"] * 2, soon())
        running.expire(late)
        found = outcomes(late)
        gate.open.set()
        outcomes(blocking)

    assert [type(outcome) for outcome in found] == [DeadlineExceeded] * 2
    assert set(texts(found)) == {
        "The request's deadline passed while the image waited in the queue. Send fewer images at "
        "once, or allow more time."
    }


def test_a_queue_that_is_full_before_the_first_batch_says_a_second() -> None:
    gate = Gate()
    with batcher(gate, max_queue_images=3) as running:
        admitted = running.submit([b"\x01"] * 2, soon())
        with pytest.raises(Overloaded) as refused:
            running.submit([b"\x01"] * 2, soon())
        with pytest.raises(Overloaded):
            running.check_room(2, 1)
        running.check_room(1, 1)
        gate.open.set()
        outcomes(admitted)

    assert str(refused.value) == (
        "2 images are waiting, 2 more would exceed the maximum of 3. Retry in 1.0 s."
    )
    assert refused.value.retry_after_s == 1.0
    assert refused.value.facts["waiting"] == 2


def test_a_stopped_batcher_says_so() -> None:
    gate = Gate()
    with batcher(gate) as running:
        waiting = running.submit([b"\x01"] * 3, soon())
        assert gate.entered.wait(TIMEOUT_S)
        running.stop(timeout_s=0.05)
        found = outcomes(waiting)
        with pytest.raises(NotReady) as refused:
            running.submit([b"\x02"], soon())
        gate.open.set()

    assert set(texts(found)) == {str(refused.value)} == {"The service is stopping."}
    assert refused.value.facts["retry_after_s"] == 1.0


def test_a_dead_inference_thread_is_logged_and_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def encode(pixels: PixelArray) -> FloatArray:
        raise SystemExit

    with caplog.at_level(logging.CRITICAL), batcher(encode) as running:
        found = outcomes(running.submit([b"\x01"] * 2, soon()))
        until(lambda: not running.alive)

    assert set(texts(found)) == {"The inference thread died; restart the service."}
    (record,) = (r for r in caplog.records if r.getMessage() == "the inference thread died")
    assert record.exc_info is not None
    assert record.exc_info[0] is SystemExit


def test_times_of_batches_are_known() -> None:
    gate = Gate()
    with batcher(gate) as running:
        assert running.last_success == -math.inf
        assert running.running_for_s == 0.0
        before = time.monotonic()
        request = running.submit([b"\x01"], soon())
        assert gate.entered.wait(TIMEOUT_S)
        until(lambda: running.running_for_s > 0.0)
        assert running.running_for_s <= time.monotonic() - before
        gate.open.set()
        outcomes(request)
        until(lambda: running.running_for_s == 0.0)
        assert before <= running.last_success <= time.monotonic()
