"""Deadline of every request, from the arrival of its headers to the last byte of its body.

What the request waits for afterwards (threads, queues, the database, URLs) takes the deadline from
the request's context.
"""

import asyncio
import contextlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_serve.errors import DeadlineExceeded, RequestInvalid
from prompt_serve.schemas import TIMEOUT_HEADER
from prompt_serve.service.problems import problem_of, problem_response
from prompt_serve.service.request_context import current_request
from prompt_serve.service.scheduling.deadline import Deadline

_LINGER_S = 2.0
_INFERENCE = frozenset({"/classify", "/v1/classify", "/v1/embed", "/v1/score"})


class DeadlineMiddleware:
    """ASGI middleware: notes the deadline in the request's context, and ends bodies that are late.

    Args:
        app: all routes.
        request_timeout_s: maximum timeout of requests that change nothing.
        change_timeout_s: maximum timeout of the others.
    """

    def __init__(self, app: ASGIApp, *, request_timeout_s: float, change_timeout_s: float) -> None:
        self._app = app
        self._request_timeout_s = request_timeout_s
        self._change_timeout_s = change_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_timeout_s = self._request_timeout_s
        if _is_change(scope["method"], scope["path"]):
            max_timeout_s = self._change_timeout_s
        header = Headers(scope=scope).get(TIMEOUT_HEADER)
        try:
            deadline = Deadline.from_header(header, max_timeout_s)
        except RequestInvalid as error:
            await problem_response(problem_of(error))(scope, receive, send)
            return
        current_request().deadline = deadline
        await _Body(self._app, deadline, receive, send).answer(scope)


def _is_change(method: str, path: str) -> bool:
    """Return True for changes of tasks, and for an export, which takes as long."""
    is_read = method in ("GET", "HEAD", "OPTIONS") or path in _INFERENCE
    return not is_read or path == "/v1/registry/export"


class _Body:
    """Body of one request; ends the connection if the body is late."""

    def __init__(self, app: ASGIApp, deadline: Deadline, receive: Receive, send: Send) -> None:
        self._app = app
        self._deadline = deadline
        self._receive = receive
        self._send = send
        self._is_complete = False
        self._is_late = False
        self._is_answered = False

    async def answer(self, scope: Scope) -> None:
        try:
            await self._app(scope, self._receive_in_time, self._send_noting)
        # Of an app that does not answer this error itself.
        except DeadlineExceeded as error:
            if not self._is_late or self._is_answered:
                raise
            response = problem_response(problem_of(error))
            await response(scope, self._receive, self._send_noting)

    async def _receive_in_time(self) -> Message:
        if self._is_complete:  # whoever receives waits for the client to disconnect
            return await self._receive()
        timeout = asyncio.timeout_at(self._deadline.at)
        try:
            async with timeout:
                message = await self._receive()
        except TimeoutError as error:
            if not timeout.expired():
                raise
            self._is_late = True
            await self._discard_rest()
            raise self._deadline.exceeded(
                "before its body had arrived. Send less at once, or allow more time."
            ) from error
        self._is_complete = not message.get("more_body", False)
        return message

    async def _discard_rest(self) -> None:
        """Read on for a moment: closing while the client still sends would lose the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self._is_complete:
                    message = await self._receive()
                    self._is_complete = not message.get("more_body", False)

    async def _send_noting(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_answered = True
            if (
                self._is_late and not self._is_complete
            ):  # the rest of the body must not be taken for another request
                MutableHeaders(scope=message)["Connection"] = "close"
        await self._send(message)
