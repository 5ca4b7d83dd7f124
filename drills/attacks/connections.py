"""Attacks that hold something: bodies that do not come, answers nobody reads, idle connections."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from drills.attacks.kind import CLOSED, Kind, Target, together
from drills.load import TIMEOUT_S
from tests.service.prompts import picture

_TASK = "drill-0"
_UNREAD_S = 20.0
_MAX_OPEN_S = 90.0  # of a connection on which nothing much comes; a request has 60 s
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_BODIES = ("image/png", "application/json", "multipart/form-data; boundary=b", "application/x-npy")


def _head(path: str, kind: str, *lines: str) -> bytes:
    start = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n"
    return (start + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()


async def _held_back(target: Target, draws: random.Random, count: int) -> None:
    """Announce bodies of up to the limit, and keep back their end or send them in trickles."""
    await together((_hold_back(target, random.Random(draws.random())) for _ in range(count)), 100)


async def _hold_back(target: Target, draws: random.Random) -> None:
    size = draws.choice((1, 1_000, 100_000, 5_000_000, 31_000_000))
    deadline = draws.choice(((), (), ("x-request-timeout-ms: 3000",)))
    framing = draws.choice((f"content-length: {size}", "transfer-encoding: chunked"))
    path = draws.choice((f"/v1/classify?task={_TASK}", "/v1/score", "/v1/tasks", "/livez", "/none"))
    head = _head(path, draws.choice(_BODIES), framing, *deadline)
    sent = draws.choice((0, 1, size // 2, max(0, size - 1)))
    body = draws.randbytes(min(sent, 2_000_000))
    if framing.startswith("t"):
        body = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    trickle = draws.choice((b"", b"", b"1\r\na\r\n"))
    async with _held(target, "a held-back body") as (reader, writer):
        with contextlib.suppress(OSError):
            writer.write(head + body)
        await _await_end(target, (reader, writer), trickle, draws.uniform(0.02, 1), head[:90])


async def _one_byte_chunks(target: Target, draws: random.Random, count: int) -> None:
    """Send bodies of chunks of a byte, as fast as they are taken."""
    for start in range(0, count, 8):
        await together(
            _chunks(target, random.Random(draws.random())) for _ in range(min(8, count - start))
        )


async def _chunks(target: Target, draws: random.Random) -> None:
    size = draws.choice((1_000, 60_000, 400_000))
    chunk = draws.choice((b"1\r\na\r\n", b"1;a=b\r\na\r\n", b"2\r\n[]\r\n", b"0000001\r\n,\r\n"))
    path = draws.choice((f"/v1/classify?task={_TASK}", "/v1/score"))
    kind = draws.choice(_BODIES)
    message = _head(path, kind, "transfer-encoding: chunked") + chunk * size + b"0\r\n\r\n"
    await target.send(message, f"{size} chunks {chunk!r} as {kind}")


async def _unread(target: Target, draws: random.Random, count: int) -> None:
    """Ask for answers that nobody reads, one after the other on each connection."""
    await together((_read_nothing(target, draws) for _ in range(count)), at_once=100)


async def _read_nothing(target: Target, draws: random.Random) -> None:
    path = draws.choice(
        ("/v1/openapi.json", "/v1/tasks", "/metrics", "/v1/registry/export", "/v1/ui")
    )
    whole = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    async with _held(target, "an answer that nobody reads") as (_, writer):
        target.count(CLOSED, path)
        with contextlib.suppress(OSError):
            writer.write(whole * draws.choice((1, 20, 300)))
            await asyncio.sleep(draws.uniform(0, _UNREAD_S))


async def _idle(target: Target, draws: random.Random, count: int) -> None:
    """Open connections by the thousand that send nothing, a part of a head, or empty lines."""
    whole = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
    beginnings = (b"", whole[:9], whole[:30], whole, b"\r\n", b"GET /" + b"a" * 30_000, whole * 2)
    await together(
        (
            _stay(target, draws.choice(beginnings), draws.choice((b"", b"\r\n", b"a")))
            for _ in range(5 * count)
        ),
        at_once=2_000,
    )


async def _stay(target: Target, beginning: bytes, more: bytes) -> None:
    async with _held(target, f"an idle connection after {beginning[:30]!r}") as (reader, writer):
        with contextlib.suppress(OSError):
            writer.write(beginning)
        await _await_end(target, (reader, writer), more, 3.0, beginning[:30])


async def _hang_ups(target: Target, draws: random.Random, count: int) -> None:
    """Cut connections at any moment of a request."""
    await together((_hang_up(target, draws) for _ in range(count)), at_once=64)


async def _hang_up(target: Target, draws: random.Random) -> None:
    image = picture(draws.randrange(50))
    path = draws.choice((f"/v1/classify?task={_TASK}", "/v1/classify?task=*&top_k=3", "/v1/embed"))
    accept = draws.choice(("*/*", "application/x-ndjson"))
    whole = _head(path, "image/png", f"content-length: {len(image)}", f"accept: {accept}") + image
    async with _held(target, "a client that hangs up") as (reader, writer):
        target.count(CLOSED, path)
        with contextlib.suppress(OSError):
            writer.write(
                whole[: draws.choice((len(whole), len(whole), draws.randrange(len(whole))))]
            )
            if draws.random() < 0.3:
                writer.write(whole * 3)
            if draws.random() < 0.3:
                writer.write_eof()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(draws.choice((1, 500))), draws.uniform(0, 0.3))


async def _deadlines(target: Target, draws: random.Random, count: int) -> None:
    """Send requests of every route with the smallest deadlines."""
    await together((_ask_in_time(target, draws) for _ in range(count)), at_once=32)


async def _ask_in_time(target: Target, draws: random.Random) -> None:
    in_ms = draws.choice((1, 2, 5, 10, 30, 100))
    if draws.random() < 0.1:  # its answer may be cut off
        lines = ("GET /v1/registry/export HTTP/1.1", "host: localhost")
        head = "\r\n".join((*lines, f"x-request-timeout-ms: {in_ms}", "", ""))
        await target.send(head.encode(), "an export", until_silence=True)
        return
    names = [f"c{draws.random()}" for _ in range(draws.choice((2, 50, 2_000)))]
    tasks = str({"name": f"d{draws.randrange(9)}", "class_names": names}).replace("'", '"')
    method, path, kind, body = draws.choice((
        ("POST", f"/v1/classify?task={_TASK}", "image/png", picture(draws.randrange(50))),
        ("POST", "/v1/classify?task=*&top_tasks=2", "image/png", picture(draws.randrange(50))),
        ("POST", "/v1/embed", "image/png", picture(draws.randrange(50))),
        ("POST", "/v1/score?task=*", "application/json", b'{"embeddings": [[1]]}'),
        ("POST", "/v1/tasks", "application/json", tasks.encode()),
        ("PUT", f"/v1/tasks/{_TASK}-copy/alias", "application/json", b'{"of": "drill-0"}'),
        ("GET", "/v1/tasks", "", b""),
        ("GET", "/metrics", "", b""),
        ("GET", "/readyz", "", b""),
    ))  # fmt: skip
    headers = {"x-request-timeout-ms": str(in_ms), **({"content-type": kind} if kind else {})}
    await target.ask(method, path, name=f"in {in_ms} ms", content=body, headers=headers)


async def _await_end(
    target: Target, streams: Streams, more: bytes, pause_s: float, shown: bytes
) -> None:
    """Send a little again and again until the service ends the connection."""
    reader, writer = streams
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _MAX_OPEN_S
    received = b""
    while loop.time() < give_up:
        try:
            data = await asyncio.wait_for(reader.read(1000), pause_s)
        except TimeoutError:
            with contextlib.suppress(OSError):
                writer.write(more)
            continue
        except ConnectionError:
            data = b""
        received += data[: 100 - len(received)]
        if not data:
            status = received[9:12]
            target.count(int(status) if status.isdigit() else CLOSED, repr(shown), received)
            return
    target.fault(
        "hung", f"open after {_MAX_OPEN_S:g} s: {shown!r}, then {more!r} each {pause_s:.2f} s"
    )


@contextlib.asynccontextmanager
async def _held(target: Target, name: str) -> AsyncIterator[Streams]:
    """Open a connection; that the service is too busy to accept it is a fault."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            streams = await asyncio.open_connection("127.0.0.1", target.stand.port)
    except (OSError, TimeoutError) as error:
        target.fault("lost", f"{name}: {type(error).__name__} on connecting")
        return
    try:
        yield streams
    finally:
        streams[1].transport.abort()


KINDS = {
    "held-back": Kind("bodies announced and held back, or sent in trickles", _held_back),
    "one-byte-chunks": Kind("bodies of up to 400,000 chunks of a byte", _one_byte_chunks),
    "unread": Kind("answers that nobody reads", _unread),
    "idle": Kind("idle connections, up to 2,000 at once", _idle),
    "hang-ups": Kind("connections cut at any moment", _hang_ups),
    "deadlines": Kind("deadlines of 1 to 100 ms on every route", _deadlines),
}
