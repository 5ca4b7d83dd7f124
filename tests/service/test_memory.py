"""Memory of a started service under requests that ask for much more: docs/operations.md, Memory."""

import asyncio
import base64
import contextlib
import io
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from prompt_serve.prompts.prompt_file import to_bytes
from tests.golden import GOLDEN
from tests.service.process import Served, service
from tests.service.unusual_images import saved

pytestmark = [pytest.mark.serve, pytest.mark.long]

MIB = 2**20
IN_FLIGHT = 400 * MIB
# docs/operations.md: what the interpreter and its allocator keep beside what is in flight.
BESIDE = 100 * MIB
SIDE = 3000
BODY_BYTES = 12 * MIB
HELD_BACK = 60


@pytest.fixture(scope="module")
def small(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with service(
        tmp_path_factory.mktemp("small"),
        tiny_bundle,
        max_bytes_in_flight=str(IN_FLIGHT),
        feature_cache_bytes=str(MIB),
        decode_threads="4",
        max_queue_bytes=str(2**30),
        request_timeout_s="60",
    ) as running:
        body = {"name": "pets", "class_names": ["cat", "dog"]}
        assert httpx.post(f"{running.url}/v1/tasks", json=body, timeout=60).status_code == 201
        tiny = saved(Image.new("RGB", (8, 8)), "PNG")
        for _ in range(20):
            assert classify(running, tiny).status_code == 200
        yield running


class Memory:
    """Largest memory of the service's processes together, sampled in a thread."""

    def __init__(self, served: Served) -> None:
        parent = psutil.Process(served.process.pid)
        self._processes = [parent, *parent.children(recursive=True)]
        self.before = self._now()
        self.peak = self.before
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.peak - self.before

    def _sample(self) -> None:
        while not self._stopped.wait(0.01):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        total = 0
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total


def classify(served: Served, image: bytes) -> httpx.Response:
    return httpx.post(
        f"{served.url}/v1/classify?task=pets",
        content=image,
        headers={"content-type": "image/png"},
        timeout=120,
    )


def many(served: Served, image: bytes, count: int = 8) -> httpx.Response:
    """Send one image many times in one request."""
    body = {"images": [base64.b64encode(image).decode()] * count, "tasks": ["pets"]}
    return httpx.post(f"{served.url}/v1/classify", json=body, timeout=120)


def images() -> dict[str, bytes]:
    size = (SIDE, SIDE)
    floats = np.full(size, 0.25, np.float32)
    deep = np.full(size, 30_000, np.uint16)
    clear = Image.new("RGBA", size, (1, 2, 3, 4))
    return {
        "webp": saved(clear, "WEBP", lossless=True, method=0),
        "png": saved(clear, "PNG"),
        "16-bit png": saved(Image.fromarray(deep), "PNG"),
        "float tiff": saved(Image.fromarray(floats), "TIFF", compression="tiff_lzw"),
        "progressive jpeg": saved(Image.new("RGB", size), "JPEG", progressive=True),
        "gif": saved(Image.new("P", size), "GIF", transparency=0),
        "avif": saved(Image.new("RGB", size), "AVIF", speed=10),
    }


@pytest.mark.parametrize("kind", images())
def test_many_large_images_at_once_stay_within_the_budget(small: Served, kind: str) -> None:
    image = images()[kind]
    with Memory(small) as memory, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: many(small, image), range(4)))

    assert {answer.status_code for answer in answers} <= {200, 429}
    assert 200 in {answer.status_code for answer in answers}
    assert memory.growth <= IN_FLIGHT + BESIDE, f"{memory.growth / MIB:.0f} MiB"
    assert classify(small, saved(Image.new("RGB", (9, 9)), "PNG")).status_code == 200


@pytest.mark.parametrize("side", [5000, 6900])
def test_an_image_that_never_fits_is_413_and_says_the_way_out(small: Served, side: int) -> None:
    image = saved(Image.new("RGB", (side, side)), "WEBP", lossless=True, method=0)
    with Memory(small) as memory:
        answer = classify(small, image)

    assert answer.status_code == 413
    assert "PROMPT_SERVE_MAX_BYTES_IN_FLIGHT" in answer.json()["detail"]
    assert memory.growth <= BESIDE


def test_clients_that_hold_back_the_end_of_large_bodies_stay_within_the_budget(
    small: Served,
) -> None:
    head = (
        f"POST /v1/classify?task=pets HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: image/png\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    ).encode()
    address = ("127.0.0.1", int(small.url.rpartition(":")[2]))
    statuses = []

    def hold_back(_: int) -> None:
        with socket.create_connection(address, timeout=60) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(head + bytes(BODY_BYTES - 1))
            with contextlib.suppress(OSError):
                statuses.append(connection.recv(100)[9:12])

    with Memory(small) as memory, ThreadPoolExecutor(HELD_BACK) as pool:
        list(pool.map(hold_back, range(HELD_BACK)))

    assert memory.growth <= IN_FLIGHT + BESIDE, f"{memory.growth / MIB:.0f} MiB"
    assert set(statuses) <= {b"408", b"429", b""}
    assert b"408" in statuses
    assert classify(small, saved(Image.new("RGB", (9, 9)), "PNG")).status_code == 200


def _lying_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.safetensors", bytes(1000 * MIB))
    data = bytearray(file.getvalue())
    place = data.rindex((1000 * MIB).to_bytes(4, "little"))
    data[place : place + 4] = (1000).to_bytes(4, "little")
    return bytes(data)


def _zip_of(data: bytes, count: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(count):
            archive.writestr(f"task-{index}.safetensors", data)
    return file.getvalue()


UPLOADS: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "a zip that lies": ("PUT", "/v1/tasks", _lying_zip),
    "a zip of large files": ("PUT", "/v1/tasks", lambda: _zip_of(bytes(60 * MIB), 8)),
    "a zip of prompts": ("PUT", "/v1/tasks", lambda: _zip_of(to_bytes(GOLDEN["deep"]), 500)),
    "a large prompt": ("PUT", "/v1/tasks/large", lambda: bytes(30 * MIB)),
    "lists": ("PUT", "/v1/tasks/large", lambda: b"[]," * (10 * MIB)),
    "json": ("POST", "/v1/tasks", lambda: b'{"name":"a","class_names":[' + b'"",' * (8 * MIB)),
}


@pytest.mark.parametrize("kind", UPLOADS)
def test_uploads_stay_within_the_budget(small: Served, kind: str) -> None:
    method, path, make = UPLOADS[kind]
    body = make()
    headers = {"content-type": "application/json" if kind == "json" else "application/zip"}

    def send(_: int) -> Any:
        return httpx.request(
            method, f"{small.url}{path}", content=body, headers=headers, timeout=120
        )

    with Memory(small) as memory, ThreadPoolExecutor(6) as pool:
        statuses = {answer.status_code for answer in pool.map(send, range(6))}

    assert memory.growth <= IN_FLIGHT + BESIDE, f"{memory.growth / MIB:.0f} MiB"
    assert statuses <= {413, 422, 429}


def test_bodies_of_single_bytes_are_refused_and_take_no_memory(small: Served) -> None:
    async def trickle() -> int:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(small.url.rpartition(":")[2])
        )
        head = (
            "POST /v1/classify?task=pets HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        writer.write(head.encode())
        with contextlib.suppress(OSError):  # answered before
            for _ in range(300):
                writer.write(b"1\r\na\r\n" * 1000)
                await writer.drain()
        status = int((await reader.read(12))[9:12])
        writer.close()
        return status

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(trickle() for _ in range(8)))

    with Memory(small) as memory:
        statuses = asyncio.run(all_of_them())

    assert set(statuses) == {400}
    assert memory.growth <= BESIDE, f"{memory.growth / MIB:.0f} MiB"
