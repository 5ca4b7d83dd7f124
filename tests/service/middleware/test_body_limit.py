"""Bodies and answers through the middleware: limits, reservations, rates, blocks and pieces."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_serve.service.byte_budget import ByteBudget
from prompt_serve.service.middleware import body_limit
from prompt_serve.service.middleware.body_limit import BODY_FACTOR, BodyLimitMiddleware

Chunks = list[bytes | float]  # bytes of the body, and seconds in between


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body, as the app does that reads it whole."""
    body = await Request(scope, receive).body()
    await Response(body)(scope, receive, send)


def exchange(
    app: ASGIApp,
    chunks: Chunks,
    *,
    headers: dict[str, str] | None = None,
    path: str = "/v1/classify",
    on_send: Callable[[Message], Awaitable[None]] | None = None,
) -> list[Message]:
    """Send a body in chunks; returns the messages of the answer."""
    sent: list[Message] = []
    left = list(chunks)

    async def receive() -> Message:
        while left and isinstance(left[0], float):
            await asyncio.sleep(left[0])
            left.pop(0)
        if not left:
            await asyncio.sleep(3600)  # a client that holds back the end
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        if on_send is not None:
            await on_send(message)
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
    }
    asyncio.run(_run(app, scope, receive, send))
    return sent


async def _run(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


def status(sent: list[Message]) -> int:
    return int(sent[0]["status"])


def body_of(sent: list[Message]) -> bytes:
    return b"".join(message["body"] for message in sent[1:])


def code(sent: list[Message]) -> str:
    return str(json.loads(body_of(sent))["code"])


def sized(size: int) -> dict[str, str]:
    return {"content-length": str(size)}


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 300_000])
@pytest.mark.parametrize("chunk", [1, 7, 5000, 65_536, 10**6])
def test_a_body_arrives_whole_however_it_was_cut(size: int, chunk: int) -> None:
    size = min(size, chunk * 3_000)
    body = bytes(index % 251 for index in range(size))
    chunks: Chunks = [body[start : start + chunk] for start in range(0, size, chunk)] or [b""]
    seen: list[int] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        async def noted() -> Message:
            message = await receive()
            seen.append(len(message["body"]))
            return message

        await echo(scope, noted, send)

    budget = ByteBudget(10**8)
    sent = exchange(BodyLimitMiddleware(noting, 10**6, lambda: budget, 1), chunks)

    assert status(sent) == 200
    assert body_of(sent) == body
    assert len(seen) <= size // 65_536 + 1  # blocks, not a list of single bytes
    assert budget.in_use == 0


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_is_reserved_before_it_is_read_and_returned_after_it(announced: bool) -> None:
    budget = ByteBudget(10**7)
    in_use: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        in_use.append(budget.in_use)
        body = await Request(scope, receive).body()
        in_use.append(budget.in_use)
        await Response(body[:1])(scope, receive, send)

    headers = sized(200_000) if announced else {}
    chunks: Chunks = [bytes(100_000), bytes(100_000)]
    sent = exchange(BodyLimitMiddleware(app, 10**6, lambda: budget), chunks, headers=headers)

    assert status(sent) == 200
    assert in_use == [announced * 200_000 * BODY_FACTOR, 200_000 * BODY_FACTOR]
    assert budget.in_use == 0


@pytest.mark.parametrize("kind", ["error", "cancelled", "disconnect", "too large", "answered"])
def test_the_bytes_are_returned_whatever_happens(kind: str) -> None:
    budget = ByteBudget(10**8)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if kind == "error":
            raise ZeroDivisionError
        if kind == "cancelled":
            raise asyncio.CancelledError
        await echo(scope, receive, send)

    chunks: Chunks = [bytes(70_000), bytes(10**6 if kind == "too large" else 10)]
    middleware = BodyLimitMiddleware(app, 10**6, lambda: budget)
    if kind in ("error", "cancelled"):
        with pytest.raises((ZeroDivisionError, asyncio.CancelledError)):
            exchange(middleware, chunks)
    else:
        sent = exchange(middleware, chunks)
        assert status(sent) == (413 if kind == "too large" else 200)

    assert budget.in_use == 0


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_does_not_fit_is_429_and_one_that_never_fits_413(announced: bool) -> None:
    budget = ByteBudget(4 * BODY_FACTOR * 200_000, max_wait_s=0.05)  # of bodies: 200,000 bytes
    middleware = BodyLimitMiddleware(echo, 10**6, lambda: budget)

    def send(size: int) -> list[Message]:
        chunks: Chunks = [bytes(70_000), bytes(size - 70_000)]
        return exchange(middleware, chunks, headers=sized(size) if announced else {})

    assert status(send(200_000)) == 200
    never = send(200_001)
    other = budget.reservation()
    other.grow(1, "bodies")
    now = send(200_000)

    assert (status(never), code(never)) == (413, "request-too-large")
    assert (status(now), code(now)) == (429, "overloaded")
    assert dict(now[0]["headers"])[b"retry-after"].isdigit()
    assert budget.in_use == 1
    other.release()
    assert status(send(200_000)) == 200


@pytest.mark.parametrize(
    "chunks",
    [
        [b"a"],
        [b"x" * 90_000, b"y" * 90_000],
        [part for _ in range(200) for part in (b"a", 0.01)],
        [b"", 10.0, b"late"],
        [b"x" * 2_000, 0.02, b"x" * 2_000, 10.0, b"x"],
    ],
    ids=["one byte", "its end held back", "trickle", "nothing", "stops"],
)
def test_a_body_that_is_too_slow_is_408(chunks: Chunks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "_RATE_WINDOW_S", 0.2)
    budget = ByteBudget(10**8)
    middleware = BodyLimitMiddleware(echo, 10**6, lambda: budget, min_bytes_per_s=5_000)

    sent = exchange(middleware, [*chunks, 1000.0, b"end"])

    assert (status(sent), code(sent)) == (408, "body-too-slow")
    assert budget.in_use == 0


def test_a_body_that_is_just_fast_enough_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "_RATE_WINDOW_S", 0.2)
    middleware = BodyLimitMiddleware(echo, 10**6, min_bytes_per_s=1)

    sent = exchange(middleware, [part for _ in range(20) for part in (b"a", 0.05)] + [b"end"])

    assert (status(sent), body_of(sent)) == (200, b"a" * 20 + b"end")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"images":[' + b"[]," * 300_000 + b"[]]}",
        b'["' + b"," * 450_000 + b'"]',
        b"\\/" * 1_000_001,
        b'{"a":1' + b',"b":1' * 1_000 + b"}",
        b'{"a" : 1' + b',"b"\n\t : 1' * 1_000 + b"}",
    ],
    ids=["brackets", "empty lists", "commas", "escapes", "keys", "keys and white space"],
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/tasks", "/v1/embed", "/classify"])
def test_json_of_too_many_values_is_not_parsed(body: bytes, path: str) -> None:
    middleware = BodyLimitMiddleware(echo, 10**7)
    headers = {"content-type": "application/json; charset=utf-8"}

    assert status(exchange(middleware, [body], headers=headers, path=path)) == 413
    of_score = exchange(middleware, [body], headers=headers, path="/v1/score")
    assert status(of_score) == (200 if b",," in body else 413)  # 800,000 numbers are few enough
    assert status(exchange(middleware, [body], path=path)) == 200  # no JSON


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 1_000_000])
def test_an_answer_is_sent_in_pieces_and_reserved_until_the_last(size: int) -> None:
    budget = ByteBudget(10**8)
    in_use: list[int] = []
    body = bytes(index % 251 for index in range(size))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(body)(scope, receive, send)

    async def on_send(message: Message) -> None:
        in_use.append(budget.in_use)

    middleware = BodyLimitMiddleware(app, 10**6, lambda: budget)
    sent = exchange(middleware, [b""], on_send=on_send)

    assert body_of(sent) == body
    assert max(len(message["body"]) for message in sent[1:]) <= 65_536
    assert [message["more_body"] for message in sent[1:] if "more_body" in message][-1:] in (
        [],
        [False],
    )
    assert set(in_use) == ({size} if size > 65_536 else {0})
    assert budget.in_use == 0


def test_an_answer_that_does_not_fit_becomes_a_problem_before_it_starts() -> None:
    budget = ByteBudget(1_000_000, max_wait_s=0.01)
    held = budget.reservation()
    held.grow(700_000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(bytes(100_000), headers={"x-of-the-answer": "1"})(scope, receive, send)

    sent = exchange(BodyLimitMiddleware(app, 10**6, lambda: budget), [b""])

    assert (status(sent), code(sent)) == (429, "overloaded")
    assert b"x-of-the-answer" not in dict(sent[0]["headers"])
    assert budget.in_use == 700_000


def test_a_stream_starts_at_once_and_is_cut_off_if_it_does_not_fit() -> None:
    budget = ByteBudget(1_000_000, max_wait_s=0.01)
    held = budget.reservation()
    held.grow(700_000)
    sent: list[Message] = []

    async def lines() -> AsyncIterator[bytes]:
        assert [message["type"] for message in sent] == ["http.response.start"]
        yield b"one\n"
        yield bytes(100_000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(lines())(scope, receive, send)

    async def on_send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(Exception) as caught:
        exchange(BodyLimitMiddleware(app, 10**6, lambda: budget), [b""], on_send=on_send)

    assert _is_aborted(caught.value)
    assert body_of(sent) == b"one\n"
    assert budget.in_use == 700_000


def _is_aborted(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_aborted, error.exceptions))
    return isinstance(error, ConnectionAbortedError)


def test_other_protocols_pass_untouched() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        return None

    scope = {"type": "lifespan"}
    asyncio.run(_run(BodyLimitMiddleware(app, 1), scope, receive, send))

    assert seen == [(scope, receive, send)]
