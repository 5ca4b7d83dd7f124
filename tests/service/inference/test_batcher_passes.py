"""Images with several passes: one for each prompt of the image tower, in the order of the rows."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from prompt_serve.errors import Overloaded, ServiceError
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.types import FloatArray, PixelArray
from tests.service.inference.test_batcher import (
    Gate,
    outcomes,
    prompted_batcher,
    queued,
    soon,
)
from tests.service.inference.test_batcher_failures import TIMEOUT_S, changes, counted, until


def prompts(*numbers: int | None) -> list[ImageRows | None]:
    """Return the rows of some passes, each with a number to know it by; None: no prompt."""
    return [
        None
        if number is None
        else ImageRows(entering=np.full((1, 2), number, np.float32), block=0, keys=(), values=())
        for number in numbers
    ]


class Encoder:
    """Features that tell the image and the prompt (0 for none); keeps the batches."""

    def __init__(self, wait: Callable[[PixelArray], object] = lambda pixels: None) -> None:
        self.batches: list[list[list[int]]] = []
        self._wait = wait

    def __call__(self, pixels: PixelArray, rows: Sequence[ImageRows | None]) -> FloatArray:
        self._wait(pixels)
        features = [
            [int(image), 0 if row is None else int(row.entering[0, 0])]
            for image, row in zip(pixels[:, 0, 0, 0], rows, strict=True)
        ]
        self.batches.append(features)
        return np.asarray(features, np.float32)


@pytest.mark.parametrize("passes", [(7,), (None, 7), (7, None), (9, 7, 8), (None, 5, 1, 4, 3)])
@pytest.mark.parametrize("images", [1, 2, 9])
@pytest.mark.parametrize("max_batch", [1, 4])
def test_each_image_has_the_features_of_all_its_passes(
    passes: tuple[int | None, ...], images: int, max_batch: int
) -> None:
    encoder, decoded = Encoder(), []

    def decode(data: bytes) -> PixelArray:
        decoded.append(data)
        return np.full((2, 2, 3), data[0], dtype=np.uint8)

    before = counted()
    with prompted_batcher(encoder, decode=decode, max_batch=max_batch) as running:
        files = [bytes([number]) for number in range(images)]
        found = outcomes(running.submit(files, soon(), prompts(*passes)))
        assert queued(running) == (0, 0)
    counts = changes(before)

    for number, features in enumerate(found):
        assert not isinstance(features, Exception)
        assert features.tolist() == [[number, one or 0] for one in passes]
    assert sorted(decoded) == files  # once
    assert max(map(len, encoder.batches)) <= max_batch
    assert sum(map(len, encoder.batches)) == images * len(passes)
    assert counts["images_total answered"] == images
    plain = images * passes.count(None)
    assert counts["image_passes_total plain"] == plain
    assert counts["image_passes_total prompted"] == images * len(passes) - plain
    assert counts["batch_images_sum"] == counts["queue_wait_seconds_count"] == images * len(passes)
    assert (counts["queue_images"], counts["queue_bytes"]) == (0, 0)


@pytest.mark.parametrize("passes", [1, 2, 5])
@pytest.mark.parametrize("images", [1, 3])
def test_the_queue_is_bounded_in_passes(passes: int, images: int) -> None:
    gate = Gate()
    encoder, rows = Encoder(gate), prompts(*range(1, 1 + passes))
    with prompted_batcher(encoder, max_queue_images=passes * images) as running:
        for _ in range(2):  # what has left it makes room
            request = running.submit([b"\x01"] * images, soon(), rows)
            with pytest.raises(Overloaded, match=f"^{passes * images} images are waiting, 1 more"):
                running.submit([b"\x02"], soon())
            gate.open.set()
            outcomes(request)
            gate.open.clear()
        with pytest.raises(Overloaded, match=f"^0 images are waiting, {passes * images + 1} more"):
            running.check_room(passes * images + 1, 1)
        running.check_room(passes * images, 1)


@pytest.mark.parametrize("light_passes", [1, 2, 4])
def test_room_is_made_for_passes_of_a_caller_with_few(light_passes: int) -> None:
    gate = Gate()
    with prompted_batcher(Encoder(gate), max_queue_images=24) as running:
        with request_scope(RequestContext(client="heavy")):
            heavy = [running.submit([b"\x01"] * 2, soon(), prompts(1, 2, 3)) for _ in range(4)]
        with request_scope(RequestContext(client="light")):
            light = running.submit([b"\x02"], soon(), prompts(*range(1, 1 + light_passes)))
        gate.open.set()
        kept = [isinstance(outcomes(request)[0], np.ndarray) for request in heavy]
        (features,) = outcomes(light)

    assert kept == [True, True, True, False]  # one request is enough
    assert np.asarray(features).shape == (light_passes, 2)


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_pass_that_fails_fails_its_image_alone(
    bad: int, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder()

    def encode(pixels: PixelArray, rows: Sequence[ImageRows | None]) -> FloatArray:
        features = encoder(pixels, rows)
        if ((features == [5, bad]).all(axis=1)).any():
            raise RuntimeError("bad")
        return features

    before = counted()
    with prompted_batcher(encode, max_batch=4) as running:
        found = outcomes(running.submit([b"\x04", b"\x05", b"\x06"], soon(), prompts(1, 2, 3)))
        outcomes(running.submit([b"\x07"] * 9, soon(), prompts(1, 2, 3)))
        until(lambda: queued(running) == (0, 0))
    counts = changes(before)

    assert [isinstance(one, ServiceError) for one in found] == [False, True, False]
    for number, features in ((4, found[0]), (6, found[2])):
        assert np.asarray(features).tolist() == [[number, 1], [number, 2], [number, 3]]
    assert counts["images_total failed"] == 1
    assert counts["images_total answered"] == 11
    assert len(caplog.records) == 1


@pytest.mark.parametrize("passes", [1, 3])
def test_an_image_whose_request_has_ended_has_no_more_passes(passes: int) -> None:
    gate = Gate()
    encoder = Encoder(gate)
    with prompted_batcher(encoder, max_batch=1) as running:
        request = running.submit([b"\x01"] * 3, soon(), prompts(*range(1, 1 + passes)))
        assert gate.entered.wait(TIMEOUT_S)
        request.cancel()
        gate.open.set()
        outcomes(running.submit([b"\x02"], soon()))
        assert queued(running) == (0, 0)

    assert encoder.batches == [[[1, 1]], [[2, 0]]]
