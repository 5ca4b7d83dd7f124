"""Refuse bodies over the limit before they are in memory: BentoML and Starlette have no limit on.

A client that announces too much and waits for permission (``Expect: 100-continue``) is answered
at once. From others some more is read and thrown away first: a connection that is closed while
its client still sends loses the answer.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_serve.errors import RequestTooLarge
from prompt_serve.service.problems import problem_of, problem_response

_MAX_DISCARDED_BYTES = 256 * 2**20


class BodyLimit:
    """ASGI middleware that answers 413 to bodies of more than ``max_bytes``."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = _number(headers.get(b"content-length"))
        if announced is not None and announced > self._max_bytes:
            if b"expect" not in headers:
                await _discard(receive)
            await self._refuse(scope, receive, send)
            return
        await self._count(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass messages on, counting; from the limit on the app sees a client that hung up."""
        received = 0
        refused = started = False

        async def counting_receive() -> Message:
            nonlocal received, refused
            if refused:
                return {"type": "http.disconnect"}
            message = await receive()
            received += len(message.get("body", b""))
            refused = received > self._max_bytes
            return {"type": "http.disconnect"} if refused else message

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if not refused:
                started = True
                await send(message)

        try:
            await self._app(scope, counting_receive, guarded_send)
        # The app stumbles over the hang-up it was shown, each framework with an error of its own.
        except Exception:
            if not refused:
                raise
        if refused and not started:
            await _discard(receive)
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = RequestTooLarge(
            f"The body is larger than the {self._max_bytes:,} bytes accepted here. Send fewer "
            f"images a request, or scale them down: the model sees a few hundred pixels a side.",
            max_body_bytes=self._max_bytes,
        )
        response = problem_response(problem_of(error), {"Connection": "close"})
        await response(scope, receive, send)


async def _discard(receive: Receive) -> None:
    left = _MAX_DISCARDED_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b"")) + 1
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def _number(header: bytes | None) -> int | None:
    try:
        return None if header is None else int(header)
    except ValueError:
        return None
