"""Reject bodies over the limit before they are in memory: BentoML and Starlette set no limit.

A client that announces too many bytes and waits for permission (``Expect: 100-continue``) is
answered at once. For other clients some more of the body is read and discarded first: closing the
connection while the client still sends would lose the answer.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_serve.errors import RequestTooLarge
from prompt_serve.service.problems import problem_of, problem_response

_MAX_DISCARDED_BYTES = 256 * 2**20


class BodyLimitMiddleware:
    """ASGI middleware that answers 413 to bodies of more than ``max_bytes``."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = _parse_int(headers.get(b"content-length"))
        if announced is not None and announced > self._max_bytes:
            if b"expect" not in headers:
                await _discard(receive)
            await self._reject(scope, receive, send)
            return
        await self._count_body(scope, receive, send)

    async def _count_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward and count the body; past the limit, the app sees a client that disconnects."""
        received = 0
        rejected = started = False

        async def counting_receive() -> Message:
            nonlocal received, rejected
            if rejected:
                return {"type": "http.disconnect"}
            message = await receive()
            received += len(message.get("body", b""))
            rejected = received > self._max_bytes
            return {"type": "http.disconnect"} if rejected else message

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if not rejected:
                started = True
                await send(message)

        try:
            await self._app(scope, counting_receive, guarded_send)
        # The app fails on the disconnect it was shown, each framework with its own exception.
        except Exception:
            if not rejected:
                raise
        if rejected and not started:
            await _discard(receive)
            await self._reject(scope, receive, send)

    async def _reject(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/v1/tasks"):
            hint = (
                "A prompt file has a few kilobytes. A checkpoint of CLIP is a backbone: export it "
                "(prompt-serve export)."
            )
        else:
            hint = (
                "Send fewer images per request, or scale them down: the model's input has a few "
                "hundred pixels per side."
            )
        error = RequestTooLarge(
            f"The body is larger than the maximum of {self._max_bytes:,} bytes. {hint}",
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


def _parse_int(header: bytes | None) -> int | None:
    try:
        return None if header is None else int(header)
    except ValueError:
        return None
