"""Attacks by the server behind an image URL, and by those who send such URLs."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator

import httpx

from drills.attacks.kind import Kind, Target, together
from drills.load import TIMEOUT_S
from tests.service.prompts import picture

_TASK = "drill-0"
_OTHER = "127.0.0.3"
_TIMEOUT_S = 3.0  # of an image, as it is set here
_PATIENCE_S = 6.0  # of a caller of a single good URL, in the presence of the others


async def _urls(target: Target, draws: random.Random, count: int) -> None:
    """Send URLs of a server that does everything wrong, while another caller sends a good one."""
    async with _server(target, random.Random(draws.random())) as port:
        other = asyncio.create_task(_good_urls(target, port))
        try:
            attacks = (_send(target, random.Random(draws.random()), port) for _ in range(count))
            await together(attacks, at_once=16)
        finally:
            other.cancel()
            await asyncio.wait([other])


async def _good_urls(target: Target, port: int) -> None:
    """Ask for an image by its URL, from another address, again and again."""
    body = {"images": [f"http://127.0.0.1:{port}/image"], "tasks": [_TASK]}
    transport = httpx.AsyncHTTPTransport(local_address=_OTHER)
    async with httpx.AsyncClient(base_url=target.stand.url, transport=transport) as http:
        while True:
            started = time.monotonic()
            answer = await http.post("/v1/classify", json=body, timeout=TIMEOUT_S)
            waited_s = time.monotonic() - started
            if answer.status_code != 200 or waited_s > _PATIENCE_S:
                shown = f"{answer.status_code} after {waited_s:.1f} s, {answer.text[:200]}"
                target.fault("hung", f"another caller's URL: {shown}")
            await asyncio.sleep(0.2)


async def _send(target: Target, draws: random.Random, port: int) -> None:
    urls = [_url(draws, port) for _ in range(draws.choice((1, 3, 64)))]
    body = json.dumps({"images": urls, "tasks": [_TASK]}).encode()
    deadline = draws.choice(({}, {}, {"x-request-timeout-ms": "200"}))
    kind = {"content-type": "application/json"}
    shown = [url[:200] for url in urls[:2]]
    await target.ask(
        "POST", "/v1/classify", name=f"URLs {shown}", content=body, headers=kind | deadline
    )


def _url(draws: random.Random, port: int) -> str:
    host = draws.choice(("127.0.0.1",) * 6 + _HOSTS)
    path = draws.choice(_PATHS).replace("PORT", str(port))
    if draws.random() < 0.1:
        return draws.choice(_NO_URLS).replace("PORT", str(port))
    return f"http://{host}:{port}{path}"


# Only 127.0.0.1 may be private; the others must be refused, however they are spelled.
_HOSTS = (
    "localhost", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0", "127.0.0.2",
    "169.254.169.254", "10.0.0.1", "127.0.0.1.nip.invalid", "ⓛocalhost", "a" * 64 + ".invalid",
    "slow.invalid", "xn--.invalid", "127.0.0.1%00.invalid", "user@127.0.0.1", "127。0。0。1",
)  # fmt: skip
_PATHS = (
    "/image", "/image", "/redirect?/redirect", "/redirect?/image",
    "/redirect?http://localhost:PORT/secret",
    "/redirect?http://127.0.0.2:PORT/secret", "/redirect?file:///etc/passwd",
    "/redirect?//evil.invalid",
    "/redirect?" + "a" * 9_000, "/redirect?gopher://127.0.0.1:PORT/secret", "/endless", "/slow",
    "/silent",
    "/headers", "/closed", "/short", "/gzip", "/chunks", "/informational", "/status", "/nothing",
    "/" + "%00" * 20,
)  # fmt: skip
_NO_URLS = (
    "http://", "https://127.0.0.1:PORT/image", "http://127.0.0.1:0/", "http://127.0.0.1:99999/",
    "ftp://a/b",
    "http://[::1", "http://a b/", "http:///image", "http://" + "a." * 5_000,
    "HTTP://127.0.0.1:PORT/image",
    "http://127.0.0.1:PORT/" + "x" * 70_000, "http://\ud83d/",
    "http://127.0.0.1:PORT\\@evil.invalid/",
)  # fmt: skip


@contextlib.asynccontextmanager
async def _server(target: Target, draws: random.Random) -> AsyncIterator[int]:
    """Run the web server on all loopback addresses; yields its port."""
    port = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if f"\r\nhost: 127.0.0.1:{port}\r\n".encode() not in head.lower():
                target.fault("leaked", f"a private address was reached by {head[:300]!r}")
            await _answer(head.split(b" ")[1].decode("latin-1"), writer, draws)
        writer.transport.abort()

    server = await asyncio.start_server(answer, "0.0.0.0", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield port
    finally:
        server.close()


async def _answer(target: str, writer: asyncio.StreamWriter, draws: random.Random) -> None:
    path, _, argument = target.partition("?")
    match path:
        case "/image":
            data = picture(draws.randrange(50))
            await _write(writer, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data), data)
        case "/redirect":
            location = argument.encode("latin-1")
            await _write(
                writer,
                b"HTTP/1.1 302 Found\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % location,
            )
        case "/secret":
            await _write(writer, b"HTTP/1.1 200 OK\r\n\r\nsecret")
        case "/endless":
            await _write(writer, b"HTTP/1.1 200 OK\r\n\r\n", *[bytes(65_536)] * 1_000)
        case "/slow":
            await _write(
                writer, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", *b"x" * 100, pause_s=0.2
            )
        case "/silent":
            await asyncio.sleep(30)
        case "/headers":
            await _write(writer, b"HTTP/1.1 200 OK\r\n", *[b"x-a: " + b"b" * 5_000 + b"\r\n"] * 100)
        case "/short":
            await _write(writer, b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nabc")
        case "/gzip":
            await _write(
                writer, b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc"
            )
        case "/chunks":
            head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            await _write(writer, head, b"1\r\na\r\n" * draws.choice((1_000, 300_000)), b"0\r\n\r\n")
        case "/informational":
            await _write(writer, *[b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 2_000)
        case "/status":
            await _write(
                writer,
                draws.choice(
                    (b"HTTP/1.1 999 X\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"no\r\n\r\n")
                ),
            )
        case "/nothing":
            await _write(writer, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")


async def _write(writer: asyncio.StreamWriter, *parts: bytes | int, pause_s: float = 0.0) -> None:
    for part in parts:
        writer.write(part if isinstance(part, bytes) else bytes([part]))
        await writer.drain()
        if pause_s:
            await asyncio.sleep(pause_s)


KINDS = {
    "image-urls": Kind(
        "image URLs: slow and false names, redirects, bodies without end",
        _urls,
        {
            "image_urls": "true",
            "image_url_private_hosts": "127.0.0.1",
            "image_url_timeout_s": f"{_TIMEOUT_S:g}",
        },
    )
}
