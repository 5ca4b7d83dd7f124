"""Faults of ``drills.chaos``: each is done to a stand while its load runs.

A fault returns when it is over, with the moment from which the service can work again: until the
first correct answer after it, the service recovers.
"""

import asyncio
import contextlib
import io
import random
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from drills.load import PNG, REFUSALS, Ledger, Load
from drills.stand import Stand

Fault = Callable[[Stand, Load], Awaitable[float]]
LARGE_SIDE = 12_000  # of an image that declares far more pixels than are allowed


@dataclass(frozen=True)
class Drill:
    """Named fault: what is done, and what the service needs for it."""

    what: str
    fault: Fault
    postgres: bool = False
    disk: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 5.0  # of load before and after it


async def kill_worker(stand: Stand, load: Load) -> float:
    stand.workers()[0].kill()
    return time.monotonic()


async def kill_service(stand: Stand, load: Load) -> float:
    await asyncio.to_thread(stand.kill)
    moment = time.monotonic()
    stand.start()  # as a supervisor does
    return moment


async def kill_parent(stand: Stand, load: Load) -> float:
    workers = stand.workers()
    assert stand.process is not None
    stand.process.kill()
    await asyncio.to_thread(stand.process.wait)
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, timeout=30)
    load.ledger.counts["workers that outlived their parent by 30 s"] = len(alive)
    for worker in alive:
        worker.kill()
    await asyncio.to_thread(psutil.wait_procs, alive, timeout=10)
    moment = time.monotonic()
    stand.start()
    return moment


async def freeze_worker(stand: Stand, load: Load) -> float:
    worker = stand.workers()[0]
    worker.suspend()
    await asyncio.sleep(20)
    with contextlib.suppress(psutil.Error):  # it was replaced
        worker.resume()
    return time.monotonic()


async def stop_database(stand: Stand, load: Load) -> float:
    assert stand.postgres is not None
    await asyncio.to_thread(stand.postgres.stop)
    await asyncio.sleep(10)
    await asyncio.to_thread(stand.postgres.start)
    return time.monotonic()


async def freeze_database(stand: Stand, load: Load) -> float:
    assert stand.postgres is not None
    stand.postgres.freeze()
    await asyncio.sleep(15)
    stand.postgres.thaw()
    return time.monotonic()


async def fill_disk(stand: Stand, load: Load) -> float:
    disk = stand.home.parent / "disk"
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    await asyncio.sleep(10)
    filler.unlink()
    return time.monotonic()


async def slow_clients(stand: Stand, load: Load) -> float:
    """Hold 100 connections that send a byte per second of a body that they announced."""
    head = (
        b"POST /v1/classify?task=drill-0 HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"
    )
    head += b"content-length: 30000000\r\n\r\n"
    writers = [await _connect(stand, head) for _ in range(100)]
    for _ in range(15):
        await asyncio.sleep(1)
        for writer in writers:
            with contextlib.suppress(OSError):
                writer.write(b"\x00")
    for writer in writers:
        writer.close()
    load.ledger.counts["slow connections"] = len(writers)
    return time.monotonic()


async def hanging_clients(stand: Stand, load: Load) -> float:
    """Send whole requests on 100 connections, read nothing, and cut half of them."""
    image = load.oracle.images[0]
    head = (
        f"POST /v1/classify?task=drill-0 HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: image/png\r\ncontent-length: {len(image)}\r\n\r\n"
    ).encode()
    writers = [await _connect(stand, head + image) for _ in range(100)]
    for writer in writers[::2]:
        writer.transport.abort()
    await asyncio.sleep(10)
    for writer in writers:
        writer.close()
    load.ledger.counts["hanging connections"] = len(writers)
    return time.monotonic()


async def mutated_images(stand: Stand, load: Load) -> float:
    """Send 2,000 images of eight formats with changed, missing and repeated bytes."""
    draw = random.Random(0)
    whole = [
        _encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
    ]
    images = [mutated(draw.choice(whole), draw) for _ in range(2000)]
    await _send_all(
        stand, load.ledger, [("POST", "/v1/classify?task=drill-0", data, PNG) for data in images]
    )
    return time.monotonic()


async def bombs(stand: Stand, load: Load) -> float:
    """Send images and archives that are small and declare or unpack to a lot."""
    octets = {"content-type": "application/octet-stream"}
    images = [_blank(kind, mode) for kind, mode in (("PNG", "1"), ("PNG", "L"), ("TIFF", "1"))]
    images += [_blank("WEBP", "RGB", 7000), _blank("GIF", "P", 6000), _blank("PNG", "RGBA", 6000)]
    requests = [("POST", "/v1/classify?task=drill-0", data, PNG) for data in images * 8]
    zipped = _zip_bomb()
    requests += [
        ("PUT", "/v1/tasks", zipped, octets),
        ("POST", "/v1/registry/import", zipped, octets),
    ]
    await _send_all(stand, load.ledger, requests)
    return time.monotonic()


async def cross_site(stand: Stand, load: Load) -> float:
    """Change tasks as a page of another site can: without a preflight request."""
    file = next(iter(load.oracle.by_version.values()))
    origins = (
        "https://evil.example",
        "http://localhost.evil.example",
        "null",
        "http://localhost:1",
    )
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
    async with httpx.AsyncClient(base_url=stand.url, timeout=60) as http:
        for origin in origins:
            for kind in kinds:
                sent = {"origin": origin, "sec-fetch-site": "cross-site", "content-type": kind}
                for method, url, data in (
                    ("POST", "/v1/tasks", b'{"name": "evil", "class_names": ["a", "b"]}'),
                    ("POST", "/v1/tasks/drill-0/rollback", b""),
                    ("POST", "/v1/registry/import", b""),
                    ("POST", "/v1/classify?task=drill-0", load.oracle.images[0]),
                ):
                    load.ledger.counts["cross-site requests"] += 1
                    answer = await http.request(method, url, content=data, headers=sent)
                    if answer.status_code < 400 or answer.status_code >= 500:
                        load.ledger.fault(
                            "accepted", f"{answer.status_code} to {method} {url} from {origin}"
                        )
        if (await http.get("/v1/tasks/evil")).status_code == 200:
            load.ledger.fault("accepted", f"a task was made, instead of {file.version[:8]}")
    return time.monotonic()


async def smuggling(stand: Stand, load: Load) -> float:
    """Send requests whose length is ambiguous, with a second request hidden in the first."""
    hidden = b"DELETE /v1/tasks/smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"
    async with httpx.AsyncClient(base_url=stand.url, timeout=60) as http:
        body = {"name": "smuggled", "class_names": ["a", "b"]}
        (await http.post("/v1/tasks", json=body)).raise_for_status()
        start = b"POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
        length = b"content-length: %d\r\n" % (5 + len(hidden))
        for raw in (
            start + length + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
            start + b"transfer-encoding: chunked\r\n" + length + b"\r\n0\r\n\r\n" + hidden,
            start + length + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
            start + length + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden,
            start + b"content-length: 0\r\n" + length + b"\r\n" + hidden,
            start + b"content-length: +0\r\n\r\n" + hidden,
            start + b"content-length: 0, 57\r\n\r\n" + hidden,
            (start + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n").replace(b"\r\n", b"\n")
            + hidden,
        ):
            load.ledger.counts["ambiguous requests"] += 1
            await _exchange(stand, raw)
            if (await http.get("/v1/tasks/smuggled")).status_code != 200:
                load.ledger.fault("accepted", f"a hidden request was run, in {raw[:160]!r}")
                (await http.post("/v1/tasks", json=body)).raise_for_status()
        (await http.delete("/v1/tasks/smuggled")).raise_for_status()
    return time.monotonic()


DRILLS: Mapping[str, Drill] = {
    "kill-worker": Drill("`kill -9` of the only worker", kill_worker),
    "kill-one-of-two": Drill(
        "`kill -9` of one of two workers", kill_worker, settings={"workers": "2"}
    ),
    "kill-service": Drill("`kill -9` of all processes, then a start", kill_service),
    "kill-parent": Drill("`kill -9` of the parent alone, then a start", kill_parent),
    "freeze-worker": Drill(
        "`SIGSTOP` of one of two workers for 20 s", freeze_worker, settings={"workers": "2"}
    ),
    "stop-database": Drill("PostgreSQL stopped for 10 s", stop_database, postgres=True),
    "freeze-database": Drill("PostgreSQL suspended for 15 s", freeze_database, postgres=True),
    "kill-on-postgres": Drill(
        "`kill -9` of all processes on PostgreSQL, then a start", kill_service, postgres=True
    ),
    "full-disk": Drill("disk of the registry full for 10 s", fill_disk, disk="24m"),
    "slow-clients": Drill("100 clients that send 1 byte per second", slow_clients),
    "hanging-clients": Drill("100 clients that read no answer or hang up", hanging_clients),
    "mutated-images": Drill("2,000 images with changed bytes", mutated_images),
    "bombs": Drill("images and archives that declare far more than they hold", bombs),
    "cross-site": Drill("requests of a foreign web page", cross_site),
    "smuggling": Drill("requests hidden in ambiguous ones", smuggling),
}


async def _send_all(
    stand: Stand,
    ledger: Ledger,
    requests: Iterable[tuple[str, str, bytes, Mapping[str, str]]],
) -> None:
    """Send requests, eight at a time; 5xx other than refusals are faults."""
    turns = asyncio.Semaphore(8)
    async with httpx.AsyncClient(base_url=stand.url, timeout=120) as http:

        async def send(method: str, url: str, data: bytes, headers: Mapping[str, str]) -> None:
            async with turns:
                ledger.counts["attacks"] += 1
                try:
                    answer = await http.request(method, url, content=data, headers=dict(headers))
                except httpx.TransportError as error:
                    ledger.fault("hung", f"{method} {url}: {type(error).__name__}")
                    return
                if answer.status_code >= 500 and answer.status_code not in REFUSALS:
                    ledger.fault(f"status {answer.status_code}", f"{method} {url}: {data[:40]!r}")

        await asyncio.gather(*(send(*request) for request in requests))


async def _connect(stand: Stand, data: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(data)
    return writer


async def _exchange(stand: Stand, raw: bytes) -> bytes:
    """Send bytes and read until the connection closes or is idle."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(raw)
    answer = b""
    with contextlib.suppress(TimeoutError, OSError):
        while chunk := await asyncio.wait_for(reader.read(65536), 2):
            answer += chunk
    writer.close()
    return answer


def _encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return bytes of which a few were changed, removed or repeated."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        if not changed:
            break
        at = draw.randrange(len(changed))
        match draw.randrange(4):
            case 0:
                changed[at] = draw.randrange(256)
            case 1:
                changed[at : at + 4] = draw.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
            case 2:
                del changed[at : at + draw.randint(1, 30)]
            case _:
                changed[at:at] = changed[at : at + draw.randint(1, 30)]
    return bytes(changed) or b"\0"


def _blank(kind: str, mode: str, side: int = LARGE_SIDE) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"compress_level": 9} if kind == "PNG" else {}
    if kind == "TIFF":
        options = {"compression": "group4"}
    Image.new(mode, (side, side)).save(file, kind, **options)
    return file.getvalue()


def _zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for n in range(64):
            archive.writestr(f"bomb{n}.safetensors", bytes(30 * 2**20))
    return file.getvalue()
