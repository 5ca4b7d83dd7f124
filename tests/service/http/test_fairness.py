"""A client of single images next to clients that send as many large images as they may."""

import io
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
from PIL import Image

from prompt_serve.prompts.prompt_file import to_bytes
from tests.golden import GOLDEN
from tests.service.process import Served
from tests.service.prompts import picture
from tests.service.secured_service import SecuredService, open_keys

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


@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("same_key", [True, False], ids=["same key", "another key"])
def test_small_changes_do_not_wait_behind_a_large_upload(
    secured: SecuredService, same_key: bool
) -> None:
    with open_keys(secured.served.home) as keys:
        other, _ = keys.create(f"other-{same_key}", "admin")
    names = [f"class number {n} of this task" for n in range(40_000)]
    new = f"queue-{same_key}"  # names that no other case has left behind
    large = {"name": f"{new}/large", "class_names": names}
    file = to_bytes(replace(GOLDEN["zero_shot"], name="foreign"))
    answers: list[int] = []
    with (
        secured.client(secured.admin) as heavy,
        secured.client(secured.admin if same_key else other) as light,
    ):
        small: list[Callable[[], httpx.Response]] = [
            lambda: light.post("/v1/tasks", json={"name": f"{new}/a", "class_names": ["a", "b"]}),
            lambda: light.put(f"/v1/tasks/{new}/a/tags", json={"tags": ["x"]}),
            lambda: light.post("/v1/tasks", json={"name": f"{new}/a", "class_names": ["a", "c"]}),
            lambda: light.post(f"/v1/tasks/{new}/a/rollback"),
            lambda: light.put(f"/v1/tasks/{new}/b/alias", json={"of": f"{new}/a"}),
            lambda: light.put(f"/v1/tasks/{new}/c", content=file),  # of another backbone
            lambda: light.delete(f"/v1/tasks/{new}/a"),
        ]
        thread = threading.Thread(
            target=lambda: answers.append(
                heavy.post("/v1/tasks", json=large, timeout=300).status_code
            )
        )
        thread.start()
        statuses: list[int] = []
        while thread.is_alive() and len(statuses) < 2 * len(small):
            statuses.append(small[len(statuses) % len(small)]().status_code)
        before = thread.is_alive()
        thread.join(300)

    assert before, f"{len(statuses)} small changes took as long as the large one"
    # The alias stays from the first round.
    assert statuses == [201, 200, 200, 200, 201, 422, 204, 201, 200, 200, 200, 200, 422, 204]
    assert answers == [201]


@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.long
def test_uploads_behind_the_largest_one_are_in_time_or_say_so(secured: SecuredService) -> None:
    """A task of 100,000 classes is computed for minutes; its own deadline ends it."""
    with open_keys(secured.served.home) as keys:
        other, _ = keys.create("other-in-time", "admin")
    names = [f"class number {n} of the largest task" for n in range(100_000)]
    ended: list[int] = []

    def upload() -> None:
        body = {"name": "largest", "class_names": names}
        limit = {"x-request-timeout-ms": "60000"}
        answer = heavy.post("/v1/tasks", json=body, headers=limit, timeout=600)
        ended.append(answer.status_code)

    with secured.client(secured.admin) as heavy, secured.client(other) as light:
        thread = threading.Thread(target=upload)
        thread.start()
        statuses: dict[str, set[int]] = {"40000": set(), "1": set()}
        for number in range(12):
            for limit, seen in statuses.items():
                body = {"name": f"small/{number}", "class_names": [f"{limit} {number}", "b"]}
                answer = light.post(
                    "/v1/tasks", json=body, headers={"x-request-timeout-ms": limit}, timeout=120
                )
                seen.add(answer.status_code)
        thread.join(600)

    assert statuses["40000"] <= {200, 201}
    assert statuses["1"] <= {200, 201, 504}
    assert ended[0] in (201, 504)
