"""A client of single images next to clients that send as many large images as they may."""

import io
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from PIL import Image

from tests.service.process import Served
from tests.service.prompts import picture
from tests.service.secured_service import SecuredService

PNG = {"content-type": "image/png"}
IMAGES = 16  # of a heavy request
SINGLES = 8


def _large_image() -> bytes:
    """Return a PNG that is small on the wire and takes long to decode."""
    file = io.BytesIO()
    Image.new("RGB", (1200, 1200), (10, 120, 200)).save(file, "PNG")
    return file.getvalue()


def _timed(client: httpx.Client, task: str, seconds: list[float], **body: object) -> int:
    started = time.monotonic()
    answer = client.post(f"/v1/classify?task={task}", timeout=120, **body)  # type: ignore[arg-type]
    seconds.append(time.monotonic() - started)
    return answer.status_code


@contextmanager
def _heavy_clients(client: httpx.Client, task: str, number: int) -> Iterator[list[float]]:
    """Send requests of many images without a break; yields the times they took so far."""
    stopping = threading.Event()
    seconds: list[float] = []
    statuses: list[int] = []
    files = [("image", ("i.png", _large_image(), "image/png"))] * IMAGES

    def send() -> None:
        while not stopping.is_set():
            statuses.append(_timed(client, task, seconds, files=files))

    threads = [threading.Thread(target=send) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        stopping.set()
        for thread in threads:
            thread.join(120)
    assert set(statuses) == {200}


def _check_turns(heavy: httpx.Client, single: httpx.Client, task: str, number: int) -> None:
    definition = {"name": task, "class_names": ["a", "b"]}
    assert heavy.post("/v1/tasks", json=definition).status_code in (200, 201)
    singles: list[float] = []
    with _heavy_clients(heavy, task, number) as heavies:
        while not heavies:  # every client is at it
            time.sleep(0.05)
        for n in range(SINGLES):
            assert _timed(single, task, singles, content=picture(n), headers=PNG) == 200

    # In turns an image waits for about one of each other client. Behind whole requests it would
    # wait as long as those take.
    assert statistics.median(singles) < statistics.median(heavies) / 2


@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.parametrize("number", [1, pytest.param(3, marks=pytest.mark.long)])
def test_single_images_get_their_turn_without_keys(served: Served, number: int) -> None:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        _check_turns(client, client, f"turns-{number}", number)


@pytest.mark.serve
@pytest.mark.slow
def test_single_images_get_their_turn_next_to_another_key(secured: SecuredService) -> None:
    with secured.client(secured.admin) as heavy, secured.client(secured.infer) as single:
        _check_turns(heavy, single, "turns-by-key", 2)
