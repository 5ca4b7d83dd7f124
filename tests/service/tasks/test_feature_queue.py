"""Class features are computed in turns of chunks, once per version, and within the deadline."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from prompt_serve.errors import DeadlineExceeded, NotReady
from prompt_serve.prompts.class_features import EncodeText
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.tasks.feature_queue import FeatureQueue
from prompt_serve.types import FloatArray


class _Encoder:
    """Encoder whose "sequences" are labels; it holds the first chunk until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.order: list[str] = []

    def __call__(self, sequences: Any) -> FloatArray:
        self.entered.set()
        assert self.open.wait(20)
        self.order.append(str(sequences))
        return np.ones((1, 1), dtype=np.float32)


def _chunks(label: str, number: int) -> Callable[[EncodeText], FloatArray]:
    def compute(encode: Any) -> FloatArray:
        return np.concatenate([encode(label) for _ in range(number)])

    return compute


def _run(queue: FeatureQueue, caller: str, label: str, chunks: int, timeout_s: float) -> FloatArray:
    with request_scope(RequestContext(client=caller, deadline=Deadline.after(timeout_s))):
        return queue.run(label, 256 * chunks, _chunks(label, chunks))


def _until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.002)


@pytest.mark.parametrize("large", [10, 35])
@pytest.mark.parametrize("others", [1, 3, 6])
@pytest.mark.parametrize("callers", ["one", "many"])
def test_a_small_task_is_done_after_one_chunk_of_each_large_one(
    large: int, others: int, callers: str
) -> None:
    encoder = _Encoder()
    queue = FeatureQueue(encoder)
    with ThreadPoolExecutor(others + 1) as pool:
        futures = []
        for n in range(others):
            caller = "same" if callers == "one" else f"caller {n}"
            futures.append(pool.submit(_run, queue, caller, f"large {n}", large, 60))
            assert encoder.entered.wait(20)
            _until(lambda n=n: len(queue._encoding._waiting) == n)  # type: ignore[misc]
        caller = "same" if callers == "one" else "small"
        futures.append(pool.submit(_run, queue, caller, "small", 1, 60))
        _until(lambda: len(queue._encoding._waiting) == others)
        encoder.open.set()
        sizes = [len(future.result(60)) for future in futures]

    assert encoder.order.index("small") == others
    assert sizes == [large] * others + [1]


def test_simultaneous_callers_share_a_computation() -> None:
    encoder = _Encoder()
    queue = FeatureQueue(encoder)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(_run, queue, f"{n}", "same", 3, 60) for n in range(4)]
        assert encoder.entered.wait(20)
        encoder.open.set()
        results = [future.result(60) for future in futures]

    assert all(len(result) == 3 for result in results)
    # Whoever came after the end computes again; within it, nobody does.
    assert len(encoder.order) % 3 == 0


@pytest.mark.parametrize("large", [20, 1000])
def test_the_deadline_ends_a_computation_between_two_chunks(large: int) -> None:
    def encode(_: Any) -> FloatArray:
        time.sleep(0.02)
        encoded.append(1)
        return np.ones((1, 1), dtype=np.float32)

    encoded: list[int] = []
    queue = FeatureQueue(encode)
    with pytest.raises(DeadlineExceeded):
        _run(queue, "a", "large", large, 0.1)

    assert len(encoded) < large
    assert len(_run(queue, "b", "small", 1, 60)) == 1


def test_a_deadline_of_one_request_does_not_end_another_one_that_waits_for_the_same() -> None:
    encoder = _Encoder()
    queue = FeatureQueue(encoder)
    with ThreadPoolExecutor(2) as pool:
        hasty = pool.submit(_run, queue, "hasty", "same", 2, 0.2)
        assert encoder.entered.wait(20)
        patient = pool.submit(_run, queue, "patient", "same", 2, 60)
        time.sleep(0.25)  # the hasty one's deadline passes inside a chunk
        encoder.open.set()
        assert len(patient.result(60)) == 2
        with pytest.raises(DeadlineExceeded):
            hasty.result(60)


def test_closing_ends_a_computation_after_the_chunk_at_hand() -> None:
    encoder = _Encoder()
    queue = FeatureQueue(encoder)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(_run, queue, "a", "large", 1000, 60)
        assert encoder.entered.wait(20)
        queue.close()
        encoder.open.set()
        with pytest.raises(NotReady, match="stopping"):
            future.result(60)

    assert encoder.order == ["large"]
