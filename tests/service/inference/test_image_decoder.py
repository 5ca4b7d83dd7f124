"""Large WebP and AVIF images are decoded in processes of their own, which may die."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import psutil
import pytest
from PIL import Image

from prompt_serve.errors import ImageInvalid, ImageTooLarge, NotReady, RequestTooLarge, ServiceError
from prompt_serve.preprocess import MAX_IMAGE_PIXELS, Preprocessing, pixels_from_bytes
from prompt_serve.service.byte_budget import ByteBudget
from prompt_serve.service.inference import image_decoder
from prompt_serve.service.inference.image_decoder import ImageDecoder
from tests.test_image_formats import encoded, photo

PREPROCESSING = Preprocessing(
    image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", decoding="scaled"
)
LARGE, SMALL = (1501, 1400), (300, 211)
PATIENCE_S = 60.0
KINDS: list[tuple[str, dict[str, object]]] = [
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {"speed": 10}),
]


def image(kind: str = "WEBP", size: tuple[int, int] = LARGE, **options: object) -> bytes:
    return encoded(photo(25, 60).resize(size), kind, **options)


@pytest.fixture
def decoder() -> Iterator[ImageDecoder]:
    decoder = ImageDecoder(PREPROCESSING, MAX_IMAGE_PIXELS, ByteBudget(2**30).reserved)
    yield decoder
    decoder.close()


def wait_until_gone(pid: int) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} still runs")


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_pixels_are_those_of_this_process(
    decoder: ImageDecoder, kind: str, options: dict[str, object]
) -> None:
    for size in (LARGE, SMALL):
        data = image(kind, size, **options)
        assert np.array_equal(decoder(data), pixels_from_bytes(data, PREPROCESSING))
    assert len(decoder.process_ids) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_other_formats_and_small_images_need_no_process(decoder: ImageDecoder, kind: str) -> None:
    for data in (image(kind), image("WEBP", SMALL), image("AVIF", SMALL, speed=10)):
        assert np.array_equal(decoder(data), pixels_from_bytes(data, PREPROCESSING))
    assert decoder.process_ids == []


def test_errors_are_those_of_this_process_and_the_process_goes_on(decoder: ImageDecoder) -> None:
    good = image(lossless=True)
    for end in (len(good) // 2, len(good) * 3 // 4, len(good) - 20):
        with pytest.raises(ImageInvalid) as here:
            pixels_from_bytes(good[:end], PREPROCESSING)
        with pytest.raises(ImageInvalid) as there:
            decoder(good[:end])
        assert there.value.message == here.value.message
    with pytest.raises(ImageTooLarge):
        ImageDecoder(PREPROCESSING, 1_000_000, lambda _: nullcontext())(good)
    used = decoder.process_ids
    decoder(good)
    assert decoder.process_ids == used or not used


def test_a_killed_process_fails_its_image_only(decoder: ImageDecoder) -> None:
    data = image()
    decoder(data)
    [first] = decoder.process_ids

    os.kill(first, signal.SIGSTOP)  # so that it is killed while it has the image
    with ThreadPoolExecutor(1) as pool:
        decoding = pool.submit(decoder, data)
        while decoder._idle:
            time.sleep(0.01)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ServiceError, match="ended"):
            decoding.result(PATIENCE_S)

    assert np.array_equal(decoder(data), pixels_from_bytes(data, PREPROCESSING))
    assert first not in decoder.process_ids


def test_a_stopped_process_fails_its_image_and_is_replaced(
    decoder: ImageDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image()
    for _ in range(2):
        decoder(data)
        [pid] = decoder.process_ids
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(image_decoder, "_MAX_DECODE_S", 1.0)
            with pytest.raises(ServiceError, match="ended"):
                decoder(data)
        wait_until_gone(pid)

    assert np.array_equal(decoder(data), pixels_from_bytes(data, PREPROCESSING))


def test_a_process_killed_while_it_waits_is_replaced_unseen(decoder: ImageDecoder) -> None:
    data = image()
    for _ in range(2):
        decoder(data)
        [pid] = decoder.process_ids
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)

    assert np.array_equal(decoder(data), pixels_from_bytes(data, PREPROCESSING))


def test_threads_have_a_process_each_and_closing_ends_them(decoder: ImageDecoder) -> None:
    data = image()
    expected = pixels_from_bytes(data, PREPROCESSING)
    with ThreadPoolExecutor(3) as pool:
        for pixels in pool.map(decoder, [data] * 9):
            assert np.array_equal(pixels, expected)
    pids = decoder.process_ids
    assert 1 <= len(pids) <= 3

    decoder.close()

    for pid in pids:
        wait_until_gone(pid)
    with pytest.raises(NotReady):
        decoder(data)


_PARENT = """
import signal, sys
from contextlib import nullcontext
from prompt_serve.preprocess import Preprocessing
from prompt_serve.service.inference.image_decoder import ImageDecoder

signal.signal(signal.SIGINT, signal.default_int_handler)  # of background jobs it is ignored
preprocessing = Preprocessing(image_size=32, mean=(0, 0, 0), std=(1, 1, 1))
decoder = ImageDecoder(preprocessing, 50_000_000, lambda _: nullcontext())
decoder(sys.stdin.buffer.read())
print(*decoder.process_ids, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_their_parent(end: signal.Signals) -> None:
    command = [sys.executable, "-c", _PARENT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        parent.stdin.write(image())
        parent.stdin.close()
        [pid] = map(int, parent.stdout.readline().split())
        assert psutil.pid_exists(pid)

        parent.send_signal(end)
        try:
            parent.wait(PATIENCE_S)
        finally:
            parent.kill()

    wait_until_gone(pid)


def test_what_an_image_takes_is_reserved_here() -> None:
    budget = ByteBudget(20_000_000)
    decoder = ImageDecoder(PREPROCESSING, MAX_IMAGE_PIXELS, budget.reserved)

    with pytest.raises(RequestTooLarge, match="PROMPT_SERVE_MAX_BYTES_IN_FLIGHT"):
        decoder(image())

    assert decoder.process_ids == []
    assert budget.in_use == 0


LONG_OPTIONS: dict[str, dict[str, object]] = {"AVIF": {"speed": 10}, "JPEG": {"quality": 95}}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "AVIF"])
def test_an_image_that_takes_long_is_not_decoded_quickly(decoder: ImageDecoder, kind: str) -> None:
    options = LONG_OPTIONS.get(kind, {})
    small = image(kind, SMALL, **options)
    quick = decoder.quickly(small)
    assert quick is not None
    assert np.array_equal(quick, pixels_from_bytes(small, PREPROCESSING))

    large = photo(2100, 2600)
    assert decoder.quickly(encoded(large, kind, **options)) is None
    assert decoder.process_ids == []


@pytest.mark.parametrize("size", [(9000, 9000), (60_000, 10), (3, 60_000)])
def test_quick_decoding_refuses_what_decoding_refuses(
    decoder: ImageDecoder, size: tuple[int, int]
) -> None:
    data = encoded(Image.new("1", size), "PNG")
    found: list[object] = []
    for decode in (decoder, decoder.quickly):
        try:
            found.append(type(decode(data)))
        except (ImageTooLarge, ImageInvalid) as error:
            found.append(error.message)
    assert found[0] == found[1] or found[1] is type(None)
