"""BentoML's timeout keeps a timer per request, and waits forever for disconnected clients."""

import asyncio
from collections.abc import Mapping
from typing import Any

from bentoml._internal.server.http.traffic import TimeoutMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from prompt_serve.service.middleware.bento_middleware import RemoveBentoMiddleware


async def says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """App whose client has disconnected."""


async def ask(app: Starlette, scope: Mapping[str, Any], *messages: dict[str, Any]) -> None:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    async def send(_: Mapping[str, Any]) -> None: ...

    await app(dict(scope), receive, send)


def test_a_request_without_an_answer_ends_and_leaves_no_timer() -> None:
    layers = [Middleware(TimeoutMiddleware, timeout=3600), Middleware(RemoveBentoMiddleware)]
    app = Starlette(middleware=layers)
    app.mount("/", says_nothing)

    async def main() -> int:
        await ask(app, {"type": "lifespan"}, {"type": "lifespan.startup"}, STOP)
        request = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await asyncio.wait_for(ask(app, request), timeout=5)
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        return sum(not timer.cancelled() for timer in timers)

    assert asyncio.run(main()) == 0


STOP = {"type": "lifespan.shutdown"}
