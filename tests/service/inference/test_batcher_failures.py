"""What callers and the log are told when something fails in the batcher, and what it retries."""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from prompt_serve.errors import DeadlineExceeded, ImageInvalid, NotReady, Overloaded, ServiceError
from prompt_serve.service.inference.batcher import Outcome
from prompt_serve.service.observability import metrics
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.types import FloatArray, PixelArray
from tests.service.clock import Clock
from tests.service.inference.test_batcher import (
    NO_DEADLINE,
    Gate,
    batcher,
    first_pixel,
    outcomes,
    soon,
)

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
        until(lambda: running.running_for_s == 0.0)
        assert running.last_success == -math.inf

    assert texts(found) == [
        f"The service failed while encoding the image ({kind.__name__}); the service's log has "
        f"the reason."
    ]
    (record,) = (r for r in caplog.records if r.getMessage() == "the image encoder failed")
    assert record.exc_info is not None
    assert record.exc_info[0] is kind


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("excess", [-1, 1])
def test_an_encoder_with_too_few_or_too_many_features_answers_nobody_wrongly(
    images: int, excess: int, caplog: pytest.LogCaptureFixture
) -> None:
    def encode(pixels: PixelArray) -> FloatArray:
        return np.zeros((len(pixels) + excess, 1), np.float32)

    with batcher(encode, max_batch=8) as running:
        found = outcomes(running.submit([np.zeros((2, 2, 3), np.uint8)] * images, soon()))

    assert all(isinstance(one, NotReady) for one in found)
    assert [record.getMessage() for record in caplog.records] == ["the inference thread died"]


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
        stopping = threading.Thread(target=running.stop, args=(0.05,))
        stopping.start()
        found = outcomes(waiting)
        with pytest.raises(NotReady) as refused:
            running.submit([b"\x02"], soon())
        gate.open.set()
        stopping.join(TIMEOUT_S)

    assert set(texts(found)) == {str(refused.value)} == {"The service is stopping."}
    for error in (*found, refused.value):
        assert isinstance(error, NotReady)
        assert error.facts["retry_after_s"] == 1.0


@pytest.mark.parametrize("delay_ms", [0.0, 1.0, 60_000.0])
def test_an_empty_batcher_stops_without_a_word(
    delay_ms: float, caplog: pytest.LogCaptureFixture
) -> None:
    with batcher(first_pixel, max_queue_delay_ms=delay_ms) as running:
        pass
    until(lambda: not running.alive)

    assert not caplog.records


@pytest.mark.parametrize("n_images", [1, 4, 9])
def test_stopping_does_not_wait_for_a_decoder_that_hangs(
    n_images: int, caplog: pytest.LogCaptureFixture
) -> None:
    go, before = threading.Event(), set(threading.enumerate())

    def decode(data: bytes) -> PixelArray:
        go.wait(3 * TIMEOUT_S)
        raise ImageInvalid("none")

    with batcher(first_pixel, decode=decode) as running:
        request = running.submit([b"\x01"] * n_images, soon())
        stopping = threading.Thread(target=running.stop, args=(0.05,))
        stopping.start()
        found = outcomes(request)
        stopping.join(TIMEOUT_S)
        go.set()
    until(lambda: before.issuperset(threading.enumerate()))

    assert texts(found) == ["The service is stopping."] * n_images
    assert not caplog.records  # also not of images that are left when the decoder returns


def test_threads_have_names_and_end_with_the_batcher() -> None:
    before = set(threading.enumerate())
    with batcher(first_pixel) as running:
        outcomes(running.submit([b"\x01"], soon()))
        threads = {one.name: one for one in threading.enumerate() if one not in before}
        assert threads.keys() >= {"inference", "decode_0"}
        assert threads["inference"].daemon  # a device that hangs does not keep the process
    until(lambda: not any(one.is_alive() for one in threads.values()))
    assert not running.alive


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux alone")
def test_images_are_decoded_at_a_lower_priority_than_they_are_encoded() -> None:
    niceness = []

    def note() -> None:
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def decode(data: bytes) -> PixelArray:
        note()
        return np.zeros((2, 2, 3), dtype=np.uint8)

    def encode(pixels: PixelArray) -> FloatArray:
        note()
        return first_pixel(pixels)

    note()
    with batcher(encode, decode=decode) as running:
        outcomes(running.submit([b"\x01"], soon()))

    main, decoding, encoding = niceness
    assert encoding == main
    assert decoding == min(19, main + 5)


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


def counted() -> dict[str, float]:
    """Return all numbers of the metrics that the batcher keeps, by series."""
    kept = (
        *(metrics.queue_images, metrics.queue_bytes, metrics.queue_wait_seconds),
        *(metrics.decode_seconds, metrics.batch_images, metrics.inference_seconds),
        *(metrics.image_passes, metrics.images),
    )
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for metric in kept
        for family in metric.collect()
        for sample in family.samples
    }


def changes(before: dict[str, float]) -> dict[str, float]:
    after = counted()
    return {name.removeprefix("prompt_serve_"): after[name] - before.get(name, 0) for name in after}


@pytest.mark.parametrize(("sizes", "max_batch"), [((1,), 4), ((3,), 1), ((2, 5), 4), ((4, 4), 8)])
def test_metrics_count_every_image_once(sizes: tuple[int, ...], max_batch: int) -> None:
    before, started = counted(), time.monotonic()
    gate = Gate()
    with batcher(gate, max_batch=max_batch) as running:
        first = running.submit([b"\x01"], soon())
        assert gate.entered.wait(TIMEOUT_S)
        requests = [running.submit([b"\x02" * 10] * size, soon()) for size in sizes]
        in_queue = changes(before)
        gate.open.set()
        for request in (first, *requests):
            outcomes(request)
        until(lambda: changes(before)["batch_images_sum"] == 1 + sum(sizes))
    found = changes(before)

    images = 1 + sum(sizes)
    assert (in_queue["queue_images"], in_queue["queue_bytes"]) == (images, 1 + 10 * sum(sizes))
    assert (found["queue_images"], found["queue_bytes"]) == (0, 0)
    assert found["queue_wait_seconds_count"] == found["decode_seconds_count"] == images
    assert found["batch_images_count"] == found["inference_seconds_count"] == len(gate.batches)
    assert found["image_passes_total plain"] == images
    assert found["image_passes_total prompted"] == 0
    assert found["images_total answered"] == images
    for stage in ("queue_wait_seconds", "decode_seconds", "inference_seconds"):
        assert 0 <= found[f"{stage}_sum"] <= images * (time.monotonic() - started)


@pytest.mark.parametrize("n_images", [1, 2, 5])
def test_metrics_tell_images_of_each_end_apart(
    n_images: int, caplog: pytest.LogCaptureFixture
) -> None:
    def decode(data: bytes) -> PixelArray:
        raise ImageInvalid("none")

    before = counted()
    gate = Gate()
    with batcher(gate, decode=decode) as running:
        outcomes(running.submit([b"\x01"] * n_images, soon()))
    with batcher(gate) as running:
        blocking = running.submit([b"\x01"], soon())
        assert gate.entered.wait(TIMEOUT_S)
        cancelled = running.submit([b"\x02"] * n_images, soon())
        late = running.submit([b"\x03"] * n_images, soon())
        cancelled.cancel()
        running.expire(late)
        gate.open.set()
        outcomes(blocking)
    found = {name: value for name, value in changes(before).items() if "images_total" in name}

    assert found == {
        "images_total answered": 1,
        "images_total refused": n_images,
        "images_total abandoned": n_images,
        "images_total failed": n_images,
    }
    assert not caplog.records  # a cancelled request is no error


class _EndsWhenChecked(float):
    """Deadline during whose check the request ends: after that, nothing may be decoded."""

    end: Callable[[], object] | None = None

    def __lt__(self, now: float) -> bool:
        end, self.end = self.end, None
        if end is not None:
            end()
        return False


@pytest.mark.parametrize("n_images", [1, 2, 5, 9])
@pytest.mark.parametrize("how", ["cancelled", "expired"])
@pytest.mark.parametrize("when", ["before its turn", "at the last check"])
def test_an_ended_request_is_not_decoded_and_counts_once(
    n_images: int, how: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    decoded: list[bytes] = []
    go = threading.Event()

    def decode(data: bytes) -> PixelArray:
        decoded.append(data)
        assert go.wait(TIMEOUT_S)
        return np.full((2, 2, 3), data[0], dtype=np.uint8)

    before = counted()
    with batcher(first_pixel, decode=decode) as running:
        holding = running.submit([b"\x01"] * 2, soon())  # both decode threads
        until(lambda: len(decoded) == 2)
        deadline = _EndsWhenChecked(soon())
        ended = running.submit([b"\x02"] * n_images, deadline)
        end = ended.cancel if how == "cancelled" else partial(running.expire, ended)
        if when == "at the last check":
            deadline.end = end
        else:
            end()
        go.set()
        outcomes(holding)
        outcomes(running.submit([b"\x03"] * 2, soon()))  # its turn comes after the ended request's
        until(lambda: len(running._pool) == 0)
    found = changes(before)

    assert set(decoded) == {b"\x01", b"\x03"}
    assert not caplog.records
    assert found["images_total answered"] == 4
    assert found["images_total abandoned"] == (n_images if how == "cancelled" else 0)
    assert found["images_total failed"] == (n_images if how == "expired" else 0)
    assert (found["queue_images"], found["queue_bytes"]) == (0, 0)


@pytest.mark.parametrize("n_images", [1, 3, 6])
def test_stages_of_a_request_last_as_long_as_its_images_are_in_them(n_images: int) -> None:
    """Decoding, waiting and inference follow each other, within the time of the request."""
    gate = Gate()

    def decode(data: bytes) -> PixelArray:
        time.sleep(0.01)
        return np.full((2, 2, 3), data[0], dtype=np.uint8)

    context = RequestContext()
    with batcher(gate, decode=decode, max_batch=8) as running:
        blocking = running.submit([b"\x01"], soon())
        assert gate.entered.wait(TIMEOUT_S)
        before = time.monotonic()
        with request_scope(context):
            request = running.submit([b"\x02"] * n_images, soon())
        until(lambda: changes({})["decode_seconds_count"] > 0 and len(running._ready) == n_images)
        opened = time.monotonic()
        gate.open.set()
        outcomes(request)
        outcomes(blocking)
        after = time.monotonic()
    stages = context.timings.by_stage()

    assert list(stages) == ["decode", "queue", "inference"]
    decoding, queue, inference = stages.values()
    assert before <= decoding.started < decoding.ended <= opened
    assert decoding.busy_s >= 0.01 * n_images
    assert decoding.started <= queue.started <= opened <= queue.ended <= inference.started
    assert queue.busy_s >= n_images * (queue.ended - opened)
    assert inference.started <= inference.ended <= after
    assert inference.busy_s == pytest.approx(inference.elapsed_s)  # once for all its images


@pytest.mark.parametrize("waiting", [1, 5, 20])
@pytest.mark.parametrize(
    "batches_s", [[0.5], [0.3, 0.7], [2.0] * 9, [0.1] * 5 + [3.0], [3.0] * 5 + [0.1], [9.0], [0.01]]
)
def test_retry_after_follows_the_last_batches(waiting: int, batches_s: list[float]) -> None:
    """The estimate is the time per image of the batches so far, times the images in excess.

    Each batch counts 0.8 times as much as the next; the time between requests does not count.
    """
    gate, clock, left = Gate(), Clock(), list(batches_s)
    gate.open.set()

    def slow(pixels: PixelArray) -> FloatArray:
        clock.now += left.pop(0) if left else 0
        return gate(pixels)

    with batcher(slow, max_batch=2, max_queue_images=20, clock=clock) as running:
        for _ in batches_s:
            outcomes(running.submit([b"\x01"], NO_DEADLINE))
            clock.now += 1000
        gate.open.clear()
        held = running.submit([b"\x01"] * 20, NO_DEADLINE)
        with pytest.raises(Overloaded) as refused:
            running.submit([b"\x01"] * waiting, NO_DEADLINE)
        gate.open.set()
        outcomes(held)

    weights = [0.8**age for age in reversed(range(len(batches_s)))]
    per_image_s = np.average(batches_s, weights=weights)
    expected = min(60.0, max(0.1, waiting * per_image_s))
    assert refused.value.retry_after_s == pytest.approx(expected, abs=0.051)
    assert str(refused.value).endswith(f"Retry in {refused.value.retry_after_s} s.")


@pytest.mark.parametrize("sizes", [[1, 3], [4, 1, 1], [2, 2, 8, 1], [8, 8, 8]])
def test_retry_after_is_of_an_image_not_of_a_batch(sizes: list[int]) -> None:
    """Batches that all take a second: the more images they had, the less an image takes."""
    gate, clock, pixels = Gate(), Clock(), np.full((2, 2, 3), 1, np.uint8)

    def slow(batch: PixelArray) -> FloatArray:
        features = gate(batch)
        clock.now += 1
        return features

    with batcher(slow, max_batch=8, max_queue_images=20, clock=clock) as running:
        for size in sizes:
            gate.entered.clear()
            first = running.submit([pixels], NO_DEADLINE)
            assert gate.entered.wait(TIMEOUT_S)
            rest = running.submit([pixels] * size, NO_DEADLINE)
            gate.open.set()  # one image, then all that have come meanwhile
            for request in (first, rest):
                outcomes(request)
            gate.open.clear()
        held = running.submit([b"\x01"] * 20, NO_DEADLINE)
        with pytest.raises(Overloaded) as refused:
            running.submit([b"\x01"] * 20, NO_DEADLINE)
        gate.open.set()
        outcomes(held)

    batches = [images for size in sizes for images in (1, size)]
    weights = [0.8**age for age in reversed(range(len(batches)))]
    per_image_s = sum(weights) / np.dot(batches, weights)
    assert refused.value.retry_after_s == pytest.approx(20 * per_image_s, abs=0.051)


@pytest.mark.parametrize("sizes", [(10, 10), (15, 3), (19, 1), (1, 1, 1)])
def test_a_queue_full_of_bytes_says_so(sizes: tuple[int, ...]) -> None:
    gate = Gate()
    with batcher(gate, max_queue_bytes=20) as running:
        held = [running.submit([b"\x01" * size], soon()) for size in sizes]
        full = sum(sizes)
        with pytest.raises(Overloaded) as refused:
            running.submit([b"\x01" * (21 - full)], soon())
        running.check_room(1, 20 - full)
        gate.open.set()
        for request in held:
            outcomes(request)

    assert str(refused.value) == (
        f"{len(sizes)} images are waiting, {full} bytes, {21 - full} more would exceed the maximum "
        f"of 20. Retry in 1.0 s."
    )
    assert refused.value.facts["waiting"] == len(sizes)


@pytest.mark.parametrize(
    ("held", "waits"),
    [
        ([10] * 10, {20: 2.0, 50: 5.0, 100: 10.0, 400: 10.0}),  # at most until all have left
        ([50, 50], {20: 0.4, 50: 1.0, 100: 2.0, 400: 2.0}),
        ([1], {100: 1.0, 101: 1.0}),
        ([], {101: 0.1}),  # waiting does not help; the text says so
    ],
)
def test_retry_after_of_a_queue_full_of_bytes_follows_their_share(
    held: list[int], waits: dict[int, float]
) -> None:
    gate, clock = Gate(), Clock()
    gate.open.set()

    def slow(pixels: PixelArray) -> FloatArray:
        clock.now += 1
        return gate(pixels)

    with batcher(slow, max_batch=1, max_queue_bytes=100, clock=clock) as running:
        outcomes(running.submit([b"\x01"] * 4, NO_DEADLINE))
        gate.open.clear()
        requests = [running.submit([b"\x01" * size], NO_DEADLINE) for size in held]
        found = {}
        for size in waits:
            with pytest.raises(Overloaded, match="maximum of 100") as refused:
                running.submit([b"\x01" * size], NO_DEADLINE)
            found[size] = refused.value.retry_after_s
        gate.open.set()
        for request in requests:
            outcomes(request)

    assert found == waits


def test_the_delay_of_a_batch_ends_when_the_batcher_stops_or_the_batch_is_full() -> None:
    gate = Gate()
    gate.open.set()
    with batcher(gate, max_batch=3, max_queue_delay_ms=60_000.0) as running:
        full = [running.submit([b"\x01"], NO_DEADLINE) for _ in range(3)]
        for request in full:
            outcomes(request)
        alone = running.submit([b"\x02"], NO_DEADLINE)
        until(lambda: len(running._ready) == 1)
        running.stop(timeout_s=0.05)
        until(lambda: not running.alive)

    assert gate.batches == [3]
    assert texts(outcomes(alone)) == ["The service is stopping."]
