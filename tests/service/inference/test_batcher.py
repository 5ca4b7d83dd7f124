"""Batcher: an outcome per image, room and turns for every caller, no request left hanging."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
import pytest

from prompt_serve.errors import (
    DeadlineExceeded,
    ImageInvalid,
    NotReady,
    Overloaded,
    PromptServeError,
    ServiceError,
)
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.service.inference.batcher import Batcher, Outcome
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.types import FloatArray, PixelArray
from tests.service.clock import Clock

Encode = Callable[[PixelArray], FloatArray]

NO_DEADLINE = float("inf")


def batcher(encode: Encode, **options: Any) -> AbstractContextManager[Batcher]:
    """Return a running batcher for images without prompts."""
    return prompted_batcher(lambda pixels, rows: encode(pixels), **options)


@contextmanager
def prompted_batcher(
    encode: Callable[[PixelArray, Sequence[ImageRows | None]], FloatArray],
    *,
    decode: Callable[[bytes], PixelArray] | None = None,
    decode_quickly: Callable[[bytes], PixelArray | None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **options: float,
) -> Iterator[Batcher]:
    defaults = {"max_batch": 4, "max_queue_images": 64, "max_queue_delay_ms": 0.0}
    chosen = {**defaults, "max_queue_bytes": 1 << 20, **options}
    running = Batcher(
        decode or (lambda data: np.full((2, 2, 3), data[0], dtype=np.uint8)),
        encode,
        max_batch=int(chosen["max_batch"]),
        max_queue_images=int(chosen["max_queue_images"]),
        max_queue_bytes=int(chosen["max_queue_bytes"]),
        max_queue_delay_ms=chosen["max_queue_delay_ms"],
        decode_threads=2,
        decode_quickly=decode_quickly,
        one_round=bool(options.get("one_round", False)),
        clock=clock,
    )
    try:
        yield running
    finally:
        running.stop(timeout_s=1.0)


def first_pixel(pixels: PixelArray) -> FloatArray:
    return pixels[:, 0, 0, :1].astype(np.float32)


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def queued(running: Batcher) -> tuple[int, int]:
    """Return the number and bytes of the images in the queue."""
    return len(running._admitted), running._admitted_bytes


def outcomes(future: Future[list[Outcome]]) -> list[Outcome]:
    return future.result(timeout=20)


class Gate:
    """Encoder that waits until it is opened, and records the sizes of its batches."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def __call__(self, pixels: PixelArray) -> FloatArray:
        self.entered.set()
        assert self.open.wait(20)
        self.batches.append(len(pixels))
        return first_pixel(pixels)


def test_a_batch_is_whatever_waits_when_the_device_is_free() -> None:
    gate = Gate()
    with batcher(gate) as running:
        first = running.submit([b"\x01"], soon())
        assert gate.entered.wait(20)
        others = [running.submit([bytes([n])], soon()) for n in range(2, 8)]
        _until(lambda: len(running._pool) == 0 and len(running._ready) == 6)
        gate.open.set()
        wait([first, *others], timeout=20)

    assert gate.batches == [1, 4, 2]
    assert [np.asarray(outcomes(f)[0]).item() for f in others] == [2, 3, 4, 5, 6, 7]


def test_a_queue_delay_lets_images_join() -> None:
    gate = Gate()
    gate.open.set()
    with batcher(gate, max_queue_delay_ms=60_000.0) as running:
        for request in [running.submit([b"\x01"], soon()) for _ in range(4)]:
            outcomes(request)  # in less than the delay: a full batch does not wait

    assert gate.batches == [4]


@pytest.mark.parametrize("delay_s", [0.01, 0.04])
def test_a_batch_that_nobody_joins_starts_after_the_delay(delay_s: float) -> None:
    started: list[float] = []
    waits: list[float] = []

    def encode(pixels: PixelArray) -> FloatArray:
        started.append(time.monotonic())
        return first_pixel(pixels)

    with batcher(encode, max_queue_delay_ms=1000 * delay_s) as running:
        for _ in range(3):
            submitted = time.monotonic()
            outcomes(running.submit([b"\x01"], soon()))
            waits.append(started.pop() - submitted)

    assert delay_s <= min(waits) < 1


def test_a_bad_image_fails_alone() -> None:
    def decode(data: bytes) -> PixelArray:
        if data == b"bad":
            raise ImageInvalid("bad")
        return np.full((2, 2, 3), data[0], dtype=np.uint8)

    with batcher(first_pixel, decode=decode) as running:
        one, two, three = outcomes(running.submit([b"\x05", b"bad", b"\x07"], soon()))

    assert isinstance(two, ImageInvalid)
    assert np.asarray(one).item() == 5
    assert np.asarray(three).item() == 7


def test_what_one_image_breaks_in_the_encoder_does_not_fail_its_batch() -> None:
    def encode(pixels: PixelArray) -> FloatArray:
        if (pixels == 13).any():
            raise RuntimeError("out of memory")
        return first_pixel(pixels)

    with batcher(encode, max_batch=8) as running:
        rows = outcomes(running.submit([bytes([n]) for n in range(10, 16)], soon()))
        again = outcomes(running.submit([b"\x01"], soon()))

    assert isinstance(rows[3], ServiceError)
    assert "out of memory" not in rows[3].message
    assert [np.asarray(rows[i]).item() for i in (0, 1, 2, 4, 5)] == [10, 11, 12, 14, 15]
    assert not isinstance(again[0], PromptServeError)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    gate = Gate()
    with batcher(gate, max_queue_images=4) as running:
        admitted = running.submit([b"\x01"] * 3, soon())
        with pytest.raises(
            Overloaded, match="3 images are waiting, 2 more would exceed the maximum of 4"
        ) as caught:
            running.submit([b"\x01"] * 2, soon())
        assert caught.value.retry_after_s > 0
        fits = running.submit([b"\x02"], soon())
        gate.open.set()
        assert len(outcomes(admitted)) == 3
        outcomes(fits)
        outcomes(running.submit([b"\x03"] * 4, soon()))


def test_images_past_their_deadline_or_given_up_are_not_run() -> None:
    gate, clock = Gate(), Clock()
    with batcher(gate, max_batch=8, clock=clock) as running:
        blocking = running.submit([b"\x01"], NO_DEADLINE)
        assert gate.entered.wait(20)
        late = running.submit([b"\x02"], clock.now + 5)
        just_in_time = running.submit([b"\x04"], clock.now + 6)
        given_up = running.submit([b"\x03"], NO_DEADLINE)
        kept = running.submit([b"\x04"], NO_DEADLINE)
        given_up.cancel()
        _until(lambda: len(running._ready) == 3)
        clock.now += 6
        gate.open.set()

        assert isinstance(outcomes(late)[0], DeadlineExceeded)
        for request in (kept, blocking, just_in_time, running.submit([b"\x05"], NO_DEADLINE)):
            assert isinstance(outcomes(request)[0], np.ndarray)

    assert gate.batches == [1, 2, 1]


@pytest.mark.parametrize("images", [1, 2, 6])
def test_stopping_finishes_what_was_admitted_and_refuses_the_rest(images: int) -> None:
    gate = Gate()
    with batcher(gate) as running:
        admitted = running.submit([b"\x01"] * images, soon())
        assert gate.entered.wait(20)
        stopping = threading.Thread(target=running.stop, args=(600.0,))
        stopping.start()
        _until(lambda: running._closed_reason is not None)
        with pytest.raises(NotReady, match="stopping"):
            running.submit([b"\x02"], soon())
        gate.open.set()
        stopping.join(20)
        assert not stopping.is_alive()

        assert not any(isinstance(outcome, PromptServeError) for outcome in outcomes(admitted))


def test_stopping_does_not_wait_for_a_device_that_hangs() -> None:
    gate = Gate()
    with batcher(gate) as running:
        running_now = running.submit([b"\x01"], soon())
        assert gate.entered.wait(20)
        waiting = running.submit([b"\x02"], soon())
        stopping = threading.Thread(target=running.stop, args=(0.05,))
        stopping.start()

        assert isinstance(outcomes(waiting)[0], NotReady)
        assert isinstance(outcomes(running_now)[0], NotReady)
        stopping.join(10)
        assert not stopping.is_alive()
        gate.open.set()  # only now does the device answer


def test_a_dead_inference_thread_fails_what_waits_and_what_comes() -> None:
    def encode(pixels: PixelArray) -> FloatArray:
        raise SystemExit

    with batcher(encode) as running:
        left = outcomes(running.submit([b"\x01"] * 3, soon()))
        assert all(isinstance(outcome, NotReady) for outcome in left)
        _until(lambda: not running.alive)
        with pytest.raises(NotReady, match="died"):
            running.submit([b"\x01"], soon())


def test_the_queue_delay_bounds_what_an_image_waits_though_others_keep_coming() -> None:
    time_of = Clock()
    is_waiting = threading.Event()
    batches: list[list[int]] = []

    def clock() -> float:
        if threading.current_thread().name == "inference":
            is_waiting.set()  # it holds the queue's lock until it waits
        return time_of()

    def encode(pixels: PixelArray) -> FloatArray:
        batches.append(pixels[:, 0, 0, 0].tolist())
        return first_pixel(pixels)

    with batcher(encode, max_batch=64, max_queue_delay_ms=60_000.0, clock=clock) as running:
        for first in range(0, 35, 7):
            for number, after_s in enumerate((0, 10, 20, 30, 50, 59.99, 60), first):
                time_of.now = 1000 * (1 + first) + after_s
                is_waiting.clear()
                request = running.submit([np.full((2, 2, 3), number, dtype=np.uint8)], NO_DEADLINE)
                assert is_waiting.wait(20)
            outcomes(request)

    assert batches == [list(range(first, first + 7)) for first in range(0, 35, 7)]


def test_given_up_images_leave_the_queue_at_once() -> None:
    gate = Gate()
    with batcher(gate, max_queue_images=4) as running:
        blocking = running.submit([b"\x01"], soon())
        assert gate.entered.wait(20)
        given_up = running.submit([b"\x02"] * 3, soon())
        with pytest.raises(Overloaded):
            running.submit([b"\x03"], soon())
        given_up.cancel()
        assert queued(running) == (1, 1)
        taken = running.submit([b"\x03"] * 3, soon())
        gate.open.set()
        outcomes(blocking)
        assert [np.asarray(o).item() for o in outcomes(taken)] == [3, 3, 3]
        _until(lambda: queued(running) == (0, 0))

    assert sum(gate.batches) == 4


def test_a_request_whose_time_is_up_keeps_what_it_has() -> None:
    gate = Gate()
    gate.open.set()
    with batcher(gate, max_batch=1) as running:
        done = running.submit([b"\x01"], soon())
        outcomes(done)
        gate.open.clear()
        gate.entered.clear()
        request = running.submit([b"", b"\x02", b"\x03"], soon())
        assert gate.entered.wait(20)
        _until(lambda: queued(running)[0] == 2)  # the empty image has failed
        running.expire(request)
        found = outcomes(request)
        gate.open.set()
        outcomes(running.submit([b"\x04"], soon()))

    assert [type(outcome) for outcome in found[1:]] == [DeadlineExceeded] * 2
    assert isinstance(found[0], ServiceError)
    assert gate.batches == [1, 1, 1]  # the one that was running, and the one afterwards


@pytest.mark.parametrize("others", [1, 2, 4, 7])
@pytest.mark.parametrize("images", [5, 12])
@pytest.mark.parametrize("one_round", [False, True])
def test_a_single_image_waits_for_one_image_of_each_other_request(
    others: int, images: int, *, one_round: bool
) -> None:
    gate = Gate()
    order: list[list[int]] = []

    def encode(pixels: PixelArray) -> FloatArray:
        features = gate(pixels)
        order.append(features[:, 0].astype(int).tolist())
        return features

    with batcher(encode, max_batch=4, max_queue_images=128, one_round=one_round) as running:
        running.submit([b"\x00"], soon())
        assert gate.entered.wait(20)
        heavy = [running.submit([bytes([n])] * images, soon()) for n in range(1, others + 1)]
        _until(lambda: len(running._ready) == min(4, images) * others)
        single = running.submit([b"\xff"], soon())
        _until(lambda: len(running._ready) == min(4, images) * others + 1)
        gate.open.set()
        wait([*heavy, single], timeout=20)

    flat = [image for batch in order for image in batch]
    assert flat.index(255) == 1 + others
    assert sorted(flat) == sorted([0, 255, *list(range(1, others + 1)) * images])
    expected = min(4, others + 1) if one_round else 4
    assert len(order[1]) == expected


@pytest.mark.parametrize("images", [2, 4, 9])
@pytest.mark.parametrize("one_round", [False, True])
def test_a_request_that_waits_alone_fills_the_batches(images: int, *, one_round: bool) -> None:
    gate = Gate()
    with batcher(gate, max_batch=4, one_round=one_round) as running:
        first = running.submit([b"\x00"], soon())
        assert gate.entered.wait(20)
        pixels = [np.full((2, 2, 3), 1, dtype=np.uint8)] * images
        request = running.submit(pixels, soon())
        gate.open.set()
        for one in (first, request):
            outcomes(one)

    assert gate.batches == [1, *[4] * (images // 4), *[images % 4] * (images % 4 > 0)]


@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_a_request_is_decoded_at_most_a_batch_ahead(max_batch: int) -> None:
    gate = Gate()
    decoded: list[bytes] = []

    def decode(data: bytes) -> PixelArray:
        decoded.append(data)
        return np.full((2, 2, 3), data[0], dtype=np.uint8)

    with batcher(gate, decode=decode, max_batch=max_batch) as running:
        first = running.submit([b"\x00"], soon())
        assert gate.entered.wait(20)
        request = running.submit([bytes([n]) for n in range(1, 41)], soon())
        _until(lambda: len(running._ready) == max_batch)
        assert len(decoded) == 1 + max_batch
        gate.open.set()
        assert [np.asarray(row).item() for row in outcomes(request)] == list(range(1, 41))
        outcomes(first)

    assert len(decoded) == 41


@pytest.mark.parametrize("heavy_images", [4, 16, 64])
@pytest.mark.parametrize("limit", ["images", "bytes"])
def test_a_full_queue_has_room_for_a_caller_with_little_in_it(
    heavy_images: int, limit: str
) -> None:
    gate = Gate()
    images, size = (64, 1 << 20) if limit == "images" else (1000, 6400)
    data = b"\x01" if limit == "images" else b"\x01" * 100
    with batcher(gate, max_queue_images=images, max_queue_bytes=size) as running:
        with request_scope(RequestContext(client="heavy")):
            heavy = [
                running.submit([data] * heavy_images, soon()) for _ in range(64 // heavy_images)
            ]
            with pytest.raises(Overloaded):
                running.submit([data], soon())
        with request_scope(RequestContext(client="light")):
            running.check_room(1, len(data))
            light = [running.submit([data], soon())]
            with suppress(Overloaded):  # until it would hold as much as the heavy one
                while heavy_images < 64:
                    light.append(running.submit([data], soon()))
        admitted, size_bytes = queued(running)
        gate.open.set()
        found = [outcomes(future) for future in heavy]
        answered = [outcomes(future) for future in light]

    assert admitted <= 64
    assert size_bytes <= 64 * len(data)
    assert all(isinstance(one, np.ndarray) for rows in answered for one in rows)
    displaced = [any(isinstance(one, Overloaded) for one in rows) for rows in found]
    assert displaced == sorted(displaced)  # the newest
    assert any(displaced)
    if heavy_images < 64:
        assert len(light) >= 64 // 2 - heavy_images
        assert not displaced[0]


@pytest.mark.parametrize("heavy_images", [1, 3, 8])
@pytest.mark.parametrize("light_images", [1, 2, 5])
@pytest.mark.parametrize("room", [24, 25, 26])
@pytest.mark.parametrize("limit", ["images", "bytes"])
def test_room_is_made_until_a_caller_holds_as_much_as_the_one_that_holds_most(
    heavy_images: int, light_images: int, room: int, limit: str
) -> None:
    gate = Gate()
    limits = {"max_queue_images": room if limit == "images" else 1000}
    limits["max_queue_bytes"] = 10 * room if limit == "bytes" else 10_000
    data = b"\x01" * 10
    heavy: list[Future[list[Outcome]]] = []
    light = 0
    with batcher(gate, **limits) as running:
        with request_scope(RequestContext(client="heavy")), suppress(Overloaded):
            while True:
                heavy.append(running.submit([data] * heavy_images, soon()))
        with request_scope(RequestContext(client="light")), suppress(Overloaded):
            while True:
                running.submit([data] * light_images, soon())
                light += light_images
        left = len(heavy) - sum(future.done() for future in heavy)
        gate.open.set()

    expected, kept = 0, room // heavy_images
    while (fewer := _kept(kept, heavy_images, expected + light_images, room)) is not None:
        kept, expected = fewer, expected + light_images
    assert (light, left) == (expected, kept)


def _kept(requests: int, images: int, of_the_other: int, room: int) -> int | None:
    """Return how many of a caller's requests stay when the other holds so many images; None: the
    other is refused, and all stay."""
    while requests * images + of_the_other > room:
        if requests * images <= of_the_other:
            return None
        requests -= 1
    return requests


@pytest.mark.parametrize("size", [1, 2, 7])
def test_pixels_take_room_in_the_queue(size: int) -> None:
    gate, n_bytes = Gate(), 3 * size**2
    with batcher(gate, max_queue_bytes=2 * n_bytes) as running:
        images = [np.full((size, size, 3), 1, dtype=np.uint8)] * 2
        request = running.submit(images, soon())
        assert queued(running) == (2, 2 * n_bytes)
        with pytest.raises(Overloaded, match=f"{2 * n_bytes} bytes, {n_bytes} more would exceed"):
            running.submit(images[:1], soon())
        gate.open.set()
        outcomes(request)
        assert queued(running) == (0, 0)


@pytest.mark.parametrize("gone", [[0], [1], [0, 1], [1, 2], [0, 2, 3]])
def test_who_cancels_while_a_batch_runs_takes_nothing_from_the_others(gone: list[int]) -> None:
    gate = Gate()
    with batcher(gate, max_queue_delay_ms=60_000.0) as running:
        requests = [running.submit([bytes([number])], NO_DEADLINE) for number in range(4)]
        assert gate.entered.wait(20)  # one batch with all of them
        for number in gone:
            requests[number].cancel()
        gate.open.set()
        for number in {0, 1, 2, 3}.difference(gone):
            assert np.asarray(outcomes(requests[number])[0]).item() == number


def test_the_queue_is_bounded_in_bytes_too() -> None:
    gate = Gate()
    with batcher(gate, max_queue_bytes=1000) as running:
        admitted = running.submit([b"\x01" * 600], soon())
        with pytest.raises(
            Overloaded, match="600 bytes, 500 more would exceed the maximum of 1,000"
        ) as caught:
            running.submit([b"\x02" * 500], soon())
        assert caught.value.retry_after_s > 0
        fits = running.submit([b"\x02" * 400], soon())
        gate.open.set()
        outcomes(admitted)
        outcomes(fits)
        outcomes(running.submit([b"\x03" * 1000], soon()))
        _until(lambda: queued(running) == (0, 0))


def test_retry_after_is_the_time_until_there_is_room() -> None:
    gate, clock = Gate(), Clock()
    gate.open.set()

    def slow(pixels: PixelArray) -> FloatArray:
        clock.now += 0.1
        return gate(pixels)

    with batcher(slow, max_batch=1, max_queue_images=10, clock=clock) as running:
        outcomes(running.submit([b"\x01"] * 8, NO_DEADLINE))
        gate.open.clear()
        held = running.submit([b"\x01"] * 10, NO_DEADLINE)
        waits = []
        for images in (1, 5, 10):
            with pytest.raises(Overloaded) as caught:
                running.submit([b"\x01"] * images, NO_DEADLINE)
            waits.append(caught.value.retry_after_s)
        gate.open.set()
        outcomes(held)

    assert waits == [0.1, 0.5, 1.0]


def test_pixels_go_past_the_decoder() -> None:
    def decode(data: bytes) -> PixelArray:
        raise AssertionError("decoded")

    with batcher(first_pixel, decode=decode) as running:
        (row,) = outcomes(running.submit([np.full((2, 2, 3), 9, dtype=np.uint8)], soon()))

    assert np.asarray(row).item() == 9


def _until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.002)


class Slow:
    """Decoder that takes long for images beginning with an odd byte: as long as ``blocked``."""

    def __init__(self) -> None:
        self.blocked = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self, data: bytes) -> PixelArray:
        if data[0] % 2:
            self.begun.release()
            assert self.blocked.wait(20)
        return np.full((2, 2, 3), data[0], dtype=np.uint8)

    def quickly(self, data: bytes) -> PixelArray | None:
        return None if data[0] % 2 else self(data)


@contextmanager
def slow_batcher() -> Iterator[tuple[Batcher, Slow]]:
    slow = Slow()
    with batcher(first_pixel, decode=slow, decode_quickly=slow.quickly) as running:
        try:
            yield running, slow
        finally:
            slow.blocked.set()


@pytest.mark.parametrize("requests", [1, 2, 5, 8])
def test_images_that_take_long_to_decode_hold_no_other_up(requests: int) -> None:
    with slow_batcher() as (running, slow):
        long = [running.submit([b"\x01", b"\x03", b"\x05"], soon()) for _ in range(requests)]
        for _ in range(2):  # every thread of their pool has one
            assert slow.begun.acquire(timeout=20)
        quick = [running.submit([bytes([2 * n])], soon()) for n in range(requests)]
        found = [future.result(20)[0] for future in quick]
        assert not any(future.done() for future in long)
        slow.blocked.set()
        late = [future.result(20) for future in long]

    assert [float(one[0, 0]) for one in found if isinstance(one, np.ndarray)] == list(
        range(0, 2 * requests, 2)
    )
    for outcomes in late:
        assert [float(o[0, 0]) for o in outcomes if isinstance(o, np.ndarray)] == [1, 3, 5]


def test_a_request_may_mix_images_that_take_long_with_others() -> None:
    with slow_batcher() as (running, slow):
        slow.blocked.set()
        outcomes = running.submit([bytes([n]) for n in range(20)], soon()).result(20)

    assert [float(o[0, 0]) for o in outcomes if isinstance(o, np.ndarray)] == list(range(20))


def test_images_that_take_long_leave_with_their_request() -> None:
    with slow_batcher() as (running, slow):
        long = [running.submit([b"\x01"] * 4, soon()) for _ in range(3)]
        for _ in range(2):
            assert slow.begun.acquire(timeout=20)
        long[0].cancel()
        running.expire(long[1])
        assert all(isinstance(one, DeadlineExceeded) for one in long[1].result(20))
        slow.blocked.set()
        outcomes = long[2].result(20)

    assert len(outcomes) == 4
    assert all(isinstance(one, np.ndarray) for one in outcomes)
    assert slow.begun.acquire(blocking=False)
    begun = 3
    while slow.begun.acquire(blocking=False):
        begun += 1
    assert begun <= 6  # the two that had begun, and those of the request that is left


def test_a_stopped_batcher_ends_images_that_take_long() -> None:
    with slow_batcher() as (running, slow):
        long = running.submit([b"\x01"] * 5, soon())
        assert slow.begun.acquire(timeout=20)
        running.stop(timeout_s=0.0)
        assert all(isinstance(one, NotReady) for one in long.result(20))
