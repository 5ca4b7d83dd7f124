"""Bound the bytes of requests in flight: BentoML and Starlette set no limit of any kind.

* A body over ``max_bytes`` is answered 413, before it is in memory.
* The memory that a body takes is reserved before it is read, and returned when the request is
  over. What does not fit in time is answered 429, what never fits 413.
* A body that arrives more slowly than ``min_bytes_per_s`` is answered 408. Its chunks are collected
  into blocks, because a list of bytes that came one by one takes fifty times their memory.
* JSON of so many values that parsing it would hold the event loop is answered 413.
* An answer is reserved as well, and given to the connection in pieces: a client that reads slowly
  holds no more than one of them there.

A client that announces too many bytes and waits for permission (``Expect: 100-continue``) is
answered at once. For other clients some more of the body is read and discarded first: closing the
connection while the client still sends would lose the answer.
"""

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_serve.errors import BodyTooSlow, PromptServeError, RequestTooLarge
from prompt_serve.service.byte_budget import UNLIMITED, ByteBudget, Reservation
from prompt_serve.service.problems import problem_of, problem_response
from prompt_serve.service.request_context import current_request

# Memory at the peak per byte of a body: as received, joined, parsed, and decoded from base64.
BODY_FACTOR = 4
MAX_JSON_VALUES = 250_000
MAX_JSON_PARTS = 50_000  # lists and objects; each costs as much as ten numbers
MAX_JSON_KEYS = 1_000  # each unknown one costs as much as a hundred numbers; no body has ten
MAX_JSON_ESCAPES = 1_000_000  # some programs escape every slash of base64
_SCORE_PATH = "/v1/score"
MAX_JSON_NUMBERS = 800_000  # of embeddings; a number costs a third of a text

_MAX_DISCARDED_BYTES = 256 * 2**20
_MAX_DISCARD_S = 10.0
_RATE_WINDOW_S = 5.0
_BLOCK_BYTES = 64 * 2**10
_PIECE_BYTES = 64 * 2**10
_KEY = re.compile(rb'"[ \t\r\n]*:')


class BodyLimitMiddleware:
    """ASGI middleware; see the module.

    Args:
        app: answers the requests.
        max_bytes: maximum size of a body.
        budget: returns the budget of the process; None while it starts.
        min_bytes_per_s: least rate of a body; 0: any.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        budget: Callable[[], ByteBudget | None] = lambda: None,
        min_bytes_per_s: int = 0,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._budget = budget
        self._min_bytes_per_s = min_bytes_per_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = _parse_int(headers.get(b"content-length"))
        waits = b"expect" in headers
        if announced is not None and announced > self._max_bytes:
            await _reject(scope, receive, send, self._too_large(scope), discard=not waits)
            return
        request = current_request()
        memory = (self._budget() or UNLIMITED).reservation(request.turn.caller or None)
        request.memory = memory
        try:
            try:
                await memory.grow_async((announced or 0) * BODY_FACTOR, "bodies")
            except PromptServeError as error:
                await _reject(scope, receive, send, error, discard=not waits)
                return
            await self._answer(scope, receive, send, memory, announced or 0)
        finally:
            memory.release()

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, memory: Reservation, reserved: int
    ) -> None:
        """Forward the body; once it is rejected, the app sees a client that disconnects."""
        body = _Body(receive, self._min_bytes_per_s)
        values = _JsonValues(scope)
        rejection: PromptServeError | None = None
        answer = _Answer(send, memory)

        async def checked_receive() -> Message:
            nonlocal rejection
            if rejection is None:
                try:
                    message = await body.block()
                    await self._check(scope, memory, reserved, body, values, message)
                    return message
                except PromptServeError as error:
                    rejection = error
            return {"type": "http.disconnect"}

        async def guarded_send(message: Message) -> None:
            nonlocal rejection
            if rejection is not None:
                return
            try:
                await answer.send(message)
            except PromptServeError as error:
                if answer.is_started:
                    # The client learns from the closed connection that the answer is incomplete.
                    raise ConnectionAbortedError(error.message) from error
                rejection = error

        try:
            await self._app(scope, checked_receive, guarded_send)
        # The app fails on the disconnect it was shown, each framework with its own exception.
        except Exception:
            if rejection is None:
                raise
        if rejection is not None and not answer.is_started:
            discard = not (body.is_complete or isinstance(rejection, BodyTooSlow))
            await _reject(scope, receive, send, rejection, discard=discard)

    async def _check(
        self,
        scope: Scope,
        memory: Reservation,
        reserved: int,
        body: "_Body",
        values: "_JsonValues",
        message: Message,
    ) -> None:
        """Raise if the body has become too large, or has too many values."""
        if body.received > self._max_bytes:
            raise self._too_large(scope)
        block = message.get("body", b"")
        excess = min(len(block), body.received - reserved)
        if excess > 0:
            await memory.grow_async(excess * BODY_FACTOR, "bodies")
        values.count(block)

    def _too_large(self, scope: Scope) -> RequestTooLarge:
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
        return RequestTooLarge(
            f"The body is larger than the maximum of {self._max_bytes:,} bytes. {hint}",
            max_body_bytes=self._max_bytes,
        )


class _Body:
    """Body of a request, received in blocks and not too slowly."""

    def __init__(self, receive: Receive, min_bytes_per_s: int) -> None:
        self.received = 0
        self._receive = receive
        self._min_bytes_per_s = min_bytes_per_s
        self.is_complete = False
        self._window_ends = 0.0  # on the clock of the loop
        self._window_start = 0  # bytes received before

    async def block(self) -> Message:
        """Return the next message: a disconnect, the end of the body, or at least 64 KiB of it.

        Raises:
            BodyTooSlow: in a window of time fewer bytes came than the least rate allows.
        """
        collected = bytearray()
        while True:
            message = await self._next()
            if message["type"] != "http.request":
                return message
            chunk = message.get("body", b"")
            more = bool(message.get("more_body", False))
            self.received += len(chunk)
            self.is_complete = not more
            if not collected and (not more or len(chunk) >= _BLOCK_BYTES):
                return message
            collected += chunk
            if not more or len(collected) >= _BLOCK_BYTES:
                return {"type": "http.request", "body": bytes(collected), "more_body": more}

    async def _next(self) -> Message:
        # After the body comes only the disconnect, whenever that is.
        if self.is_complete or not self._min_bytes_per_s:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        if not self._window_ends:
            self._window_ends = now + _RATE_WINDOW_S
        while True:
            try:
                async with asyncio.timeout_at(self._window_ends):
                    return await self._receive()
            except TimeoutError:
                self._check_rate()

    def _check_rate(self) -> None:
        """Raise if the window that has ended had too few bytes; otherwise start the next."""
        came = self.received - self._window_start
        expected = int(self._min_bytes_per_s * _RATE_WINDOW_S)
        if came < expected:
            raise BodyTooSlow(
                f"{came:,} bytes of the body came in {_RATE_WINDOW_S:g} s; at least {expected:,} "
                f"are expected. Send it over a faster connection, or lower "
                f"PROMPT_SERVE_MIN_BODY_BYTES_PER_S.",
                received=self.received,
            )
        self._window_start = self.received
        self._window_ends = asyncio.get_running_loop().time() + _RATE_WINDOW_S


class _JsonValues:
    """Count of the values of a body in JSON, as far as it shows without parsing."""

    def __init__(self, scope: Scope) -> None:
        kind = dict(scope["headers"]).get(b"content-type", b"").lower()
        self._is_json = b"json" in kind
        is_score = scope["path"] == _SCORE_PATH
        self._max_values = MAX_JSON_NUMBERS if is_score else MAX_JSON_VALUES
        self._values = self._parts = self._keys = self._escapes = 0

    def count(self, block: bytes) -> None:
        """Count the values of a block; raise RequestTooLarge if they have become too many."""
        if not self._is_json:
            return
        self._values += block.count(b",")
        self._parts += block.count(b"[") + block.count(b"{")
        self._keys += sum(1 for _ in _KEY.finditer(block))
        self._escapes += block.count(b"\\")
        self._check("values", self._values, self._max_values)
        self._check("lists and objects", self._parts, MAX_JSON_PARTS)
        self._check("keys", self._keys, MAX_JSON_KEYS)
        self._check("escapes", self._escapes, MAX_JSON_ESCAPES)

    @staticmethod
    def _check(what: str, count: int, limit: int) -> None:
        if count > limit:
            raise RequestTooLarge(
                f"The JSON body has more than {limit:,} {what}. Split the request.",
                limit=limit,
                count=count,
            )


class _Answer:
    """Answer being sent, with its bytes reserved."""

    def __init__(self, send: Send, memory: Reservation) -> None:
        self.is_started = False
        self._send = send
        self._memory = memory
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        """Send a message of the app, a large body in pieces.

        Raises:
            Overloaded, RequestTooLarge: it does not fit into the budget.
        """
        # The start of an answer of known length waits for its body: it may still be refused.
        if message["type"] == "http.response.start" and _has_length(message):
            self._start = message
            return
        size = len(message.get("body", b""))
        if size <= _PIECE_BYTES:
            await self._flush(message)
            return
        await self._memory.grow_async(size)
        try:
            for piece in _pieces(message):
                await self._flush(piece)
        finally:
            self._memory.shrink(size)

    async def _flush(self, message: Message) -> None:
        start, self._start = self._start, None
        self.is_started = True
        if start is not None:
            await self._send(start)
        await self._send(message)


def _has_length(start: Message) -> bool:
    return any(name.lower() == b"content-length" for name, _ in start.get("headers", ()))


def _pieces(message: Message) -> Iterator[Message]:
    """Yield a body message in pieces."""
    body = message["body"]
    for start in range(0, len(body), _PIECE_BYTES):
        end = start + _PIECE_BYTES
        more = end < len(body) or message.get("more_body", False)
        yield {"type": message["type"], "body": body[start:end], "more_body": more}


async def _reject(
    scope: Scope, receive: Receive, send: Send, error: PromptServeError, *, discard: bool
) -> None:
    """Answer with an error and close the connection; some of the body is discarded first."""
    if discard:
        with suppress(TimeoutError):
            async with asyncio.timeout(_MAX_DISCARD_S):
                await _discard(receive)
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
