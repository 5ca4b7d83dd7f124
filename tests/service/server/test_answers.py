"""Bytes and callbacks of one connection, over a transport in memory."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from prompt_serve.service.middleware.cancel_on_disconnect import cancel_on_disconnect
from prompt_serve.service.server.http_protocol import HttpProtocol

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
TIMEOUT_S = 30


class Memory(asyncio.Transport):
    """Transport that keeps what is written, each write apart."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data:
            self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def connected(app: ASGIApp) -> tuple[HttpProtocol, Memory]:
    config = Config(app, log_config=None)
    config.load()
    protocol, transport = HttpProtocol(config, ServerState(), {}), Memory()
    protocol.connection_made(transport)
    return protocol, transport


async def finished(protocol: HttpProtocol) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while protocol.tasks:
            await asyncio.sleep(0)


def sends(*messages: Message) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await asyncio.sleep(0)
            await send(message)

    return app


def start(*headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


LENGTH = (b"content-length", b"4")


@pytest.mark.parametrize(
    ("request_bytes", "messages", "bodies"),
    [
        (GET, [start(LENGTH), body(b"1234")], [b"1234"]),
        (GET, [start(LENGTH), body(b"12", more=True), body(b"34")], [b"12", b"34"]),
        (GET, [start((b"content-length", b"0")), body(b"")], [b""]),
        (GET.replace(b"GET", b"HEAD"), [start(LENGTH), body(b"1234")], [b""]),
        (GET, [start(), body(b"1234", more=True), body(b"")], [b"4\r\n1234\r\n", b"0\r\n\r\n"]),
        (GET + GET, [start(LENGTH), body(b"1234")], [b"1234"] * 2),
    ],
)
def test_the_head_travels_with_the_beginning_of_the_body(
    request_bytes: bytes, messages: list[Message], bodies: list[bytes]
) -> None:
    async def main() -> list[bytes]:
        protocol, transport = connected(sends(*messages))
        protocol.data_received(request_bytes)
        await finished(protocol)
        return transport.written

    written = asyncio.run(main())

    heads = [data for data in written if data.startswith(b"HTTP/1.1 200")]
    assert len(heads) == request_bytes.count(b"HTTP/1.1")
    assert len(written) == len(bodies)
    assert [data.split(b"\r\n\r\n", 1)[1] if data in heads else data for data in written] == bodies


def test_permission_to_send_a_body_does_not_wait_for_the_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start(LENGTH))
        await send(body(b"1234"))

    async def main() -> list[bytes]:
        protocol, transport = connected(app)
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        protocol.data_received(head)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first = list(transport.written)
        protocol.data_received(b"ab")
        await finished(protocol)
        return first + transport.written[len(first) :]

    first, answer = asyncio.run(main())

    assert first.startswith(b"HTTP/1.1 100 ")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"1234")


class Work:
    """App that reads its body, waits for ``go``, and then works until its client leaves."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.happened: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        await request.body()
        self.happened.append("read")
        await self.go.wait()
        try:
            await cancel_on_disconnect(request, self.work())
            self.happened.append("done")
        except ClientDisconnect:
            self.happened.append("left")
        await asyncio.sleep(0)  # nothing cancels what comes afterwards
        await asyncio.sleep(0)
        self.happened.append("end")

    async def work(self) -> None:
        self.happened.append("begun")
        if self.seconds:
            await asyncio.sleep(self.seconds)

    async def until(self, what: str) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while what not in self.happened:
                await asyncio.sleep(0)


@pytest.mark.parametrize("when", ["read", "begun"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT"])
@pytest.mark.parametrize("server", ["ours", "another"])
def test_work_ends_when_the_client_leaves(when: str, method: bytes, server: str) -> None:
    async def main() -> list[str]:
        work = Work(TIMEOUT_S)
        protocol, _ = connected(work if server == "ours" else without_extensions(work))
        protocol.data_received(GET.replace(b"GET", method))
        await work.until("read")
        if when == "begun":
            work.go.set()
        await work.until(when)
        protocol.connection_lost(None)
        work.go.set()
        await finished(protocol)
        return work.happened

    assert asyncio.run(main()) == ["read", "begun", "left", "end"]


@pytest.mark.parametrize("server", ["ours", "another"])
@pytest.mark.parametrize("leaves", [True, False])
def test_work_that_does_not_wait_is_done_whether_or_not_the_client_has_left(
    server: str, *, leaves: bool
) -> None:
    async def main() -> list[str]:
        work = Work(0)
        protocol, _ = connected(work if server == "ours" else without_extensions(work))
        protocol.data_received(GET)
        await work.until("read")
        if leaves:
            protocol.connection_lost(None)
        work.go.set()
        await finished(protocol)
        return work.happened

    assert asyncio.run(main()) == ["read", "begun", "done", "end"]


@pytest.mark.parametrize("size", [0, 1, 70_000, 1_000_000])
def test_reading_goes_on_while_work_waits_for_its_client(size: int) -> None:
    """A paused connection would not show its end."""

    async def main() -> None:
        work = Work(TIMEOUT_S)
        protocol, _ = connected(work)
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        protocol.data_received(head)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if size:
            protocol.data_received(b"a" * size)
        await work.until("read")
        work.go.set()
        await work.until("begun")
        assert not protocol.flow.read_paused
        protocol.connection_lost(None)
        await finished(protocol)
        assert work.happened[-2:] == ["left", "end"]

    asyncio.run(main())


def without_extensions(app: ASGIApp) -> ASGIApp:
    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "extensions": {}}, receive, send)

    return called
