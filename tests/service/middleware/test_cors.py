"""Headers for web pages: those of Starlette's middleware, whatever was asked and answered."""

import asyncio

import pytest
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

from prompt_serve.service.middleware.cors import add_cors

ORIGINS = ("", "*", "https://a.example", "https://a.example, https://b.example")
ASKED: tuple[dict[str, str], ...] = (
    {},
    {"origin": "https://a.example"},
    {"origin": "https://other.example"},
    {"accept": "*/*"},
)
ANSWERED: tuple[dict[str, str], ...] = (
    {},
    {"vary": "Accept"},
    {"Vary": "Accept-Encoding, Accept"},
    {"x-a": "1", "content-type": "text/plain"},
)


def headers_of(app: ASGIApp, asked: dict[str, str], method: str) -> dict[str, str]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": method,
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in asked.items()],
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]  # of an async function
    start, *_ = sent
    found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    assert len(found) == len(start["headers"])
    return found


@pytest.mark.parametrize("origins", ORIGINS)
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("answered", ANSWERED)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_headers_are_those_of_starlette(
    origins: str, asked: dict[str, str], answered: dict[str, str], method: str
) -> None:
    app = Response("text", headers=answered)
    ours = add_cors(app, origins)
    assert isinstance(ours, CORSMiddleware)
    theirs = CORSMiddleware(app)
    vars(theirs).update(vars(ours))

    assert headers_of(ours, asked, method) == headers_of(theirs, asked, method)
    assert "Origin" in headers_of(ours, {}, method)["vary"]
