"""uvicorn's HTTP protocol (h11), stricter about framing and about clients that do not go on.

- Requests that two parsers may frame differently are refused and their connection is closed:
  Content-Length with Transfer-Encoding, Transfer-Encoding in HTTP/1.0, bare line feeds, headers
  folded over several lines (RFC 9112, sections 2.2, 5.2, 6.1 and 6.3). Major versions other than 1
  get 505.
- So are bodies of very many small chunks, each of which costs as much as a large one.
- Connections end if they are idle, if a request's headers take too long, and if the client does not
  read its answer.
- A stop finishes requests, also those of connections that were only just accepted.
- The head of an answer is sent with the beginning of its body: one system call, one packet.
- An app can be called when its client disconnects (``middleware.cancel_on_disconnect``), which
  takes no task that waits for it.
"""

import asyncio
import re
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import h11
import uvicorn.config
from h11._receivebuffer import ReceiveBuffer
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from prompt_serve.schemas import Problem
from prompt_serve.service.middleware.cancel_on_disconnect import EXTENSION
from prompt_serve.service.problems import MEDIA_TYPE

# From the first byte of a request to the end of its headers, and for a body after its answer.
HEAD_TIMEOUT_S = 10.0
MAX_HEADERS = 200  # h11 compares each with those before it
# A chunk takes 10 us, whatever its size; the system may hand over some ten thousand of a byte each.
MAX_SMALL_CHUNKS = 2_000
MIN_CHUNK_BYTES = 128  # on average, of further ones
STALL_TIMEOUT_S = 30.0  # in which a client must read, at least, as much as follows
STALL_BYTES = 64 * 2**10
LINGER_S = 2.0  # after an error, so that what the client still sends does not reset its answer
STOP_TIMEOUT_S = 30.0  # for requests at a stop, unless --timeout-graceful-shutdown says otherwise

_BARE_LF = re.compile(rb"(?<!\r)\n")
_FOLD = re.compile(rb"\n[ \t]")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
_HEAD_END = re.compile(rb"\n\r?\n")


class _StrictBuffer(ReceiveBuffer):
    """h11's buffer that refuses headers and trailers whose ends parsers see differently."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        if self._data.startswith(b"\r\n"):  # no trailers
            return super().maybe_extract_lines()
        end = _HEAD_END.search(self._data)
        searched = end.end() if end else len(self._data)
        if _BARE_LF.search(self._data, 0, searched):
            raise h11.RemoteProtocolError("A line of the headers does not end with CR LF.")
        if _FOLD.search(self._data, 0, searched):
            raise h11.RemoteProtocolError("A header goes over several lines.")
        return super().maybe_extract_lines()


class StrictConnection(h11.Connection):
    """h11's server side that refuses what is ambiguous."""

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self._receive_buffer = _StrictBuffer()
        self._chunks = self._chunk_bytes = 0  # of the current request

    def receive_data(self, data: bytes) -> None:
        # Empty lines before a request are ignored (RFC 9112, section 2.2).
        if data and self.their_state is h11.IDLE and not self.trailing_data[0]:
            data = data.lstrip(b"\r\n")
            if not data:
                return
        super().receive_data(data)

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._chunk_bytes = 0
            return _checked(event)
        if isinstance(event, h11.Data):
            self._count(event)
        return event

    def _count(self, event: h11.Data) -> None:
        self._chunks += event.chunk_start
        self._chunk_bytes += len(event.data)
        if self._chunks > MAX_SMALL_CHUNKS + self._chunk_bytes // MIN_CHUNK_BYTES:
            raise h11.RemoteProtocolError(
                f"The body has {self._chunks:,} chunks of {self._chunk_bytes / self._chunks:.1f} "
                f"bytes on average. Send it with its length, or in larger chunks."
            )


class HttpProtocol(H11Protocol):
    """One connection; see the module."""

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        if config.timeout_graceful_shutdown is None:
            config.timeout_graceful_shutdown = round(STOP_TIMEOUT_S)
        super().__init__(config, *args, **kwargs)
        self.conn = StrictConnection(self.conn._max_incomplete_event_size)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._is_refused = False
        self._is_stopping = False
        self._on_disconnect: Callable[[], object] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Writing counts as paused until everything is sent, so that the timer covers every answer.
        transport.set_write_buffer_limits(high=0)
        self._await_head(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._report_disconnect()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        begins = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        # Empty lines begin no request, and so leave no more time for one.
        if begins and (self._head_timer is None or data.strip(b"\r\n")):
            self._await_head(HEAD_TIMEOUT_S)
        super().data_received(data)
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            # Answered already; what is left of the body is read for a while.
            if self._head_timer is None:
                self._await_head(HEAD_TIMEOUT_S)
        elif self.conn.their_state is not h11.IDLE and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._is_stopping and self.cycle is not None:
            self.cycle.keep_alive = False

    def handle_events(self) -> None:
        former = self.cycle
        super().handle_events()
        if self.cycle is not former:  # its task has not begun yet
            self._on_disconnect = None
            self.cycle.transport = cast(
                "asyncio.Transport", _AnswerTransport(self.cycle, self._close_after_answer)
            )
            self.cycle.scope["extensions"] = {EXTENSION: {"watch": self._watch}}

    def _watch(self, on_disconnect: Callable[[], object] | None) -> None:
        """Call a function when the client of the current request disconnects; None: no longer."""
        self._on_disconnect = on_disconnect
        if on_disconnect is None:
            return
        if self.cycle.disconnected:
            self.loop.call_soon(self._report_disconnect)
        else:
            self.flow.resume_reading()  # else the end of the connection would not be seen

    def _report_disconnect(self) -> None:
        if self._on_disconnect is not None and self.cycle.disconnected:
            self._on_disconnect()

    def shutdown(self) -> None:
        """Finish the request at hand, and one that a new connection is about to send."""
        self._is_stopping = True
        if self.cycle is None and not self.transport.is_closing():
            self._await_head(LINGER_S)
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader(self.transport.get_write_buffer_size() + STALL_BYTES)

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP with its status, and close the connection."""
        error = sys.exc_info()[1]  # uvicorn calls this where it handles the error
        detail = str(error) if isinstance(error, h11.RemoteProtocolError) else msg
        status = HTTPStatus(getattr(error, "error_status_hint", 400))
        self._is_refused = True
        self._abandon()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun
            self.transport.close()
            return
        problem = Problem(
            title=status.phrase, status=status, detail=detail[:500], code="request-invalid"
        )
        body = problem.model_dump_json(exclude_none=True).encode()
        headers = [
            ("Content-Type", MEDIA_TYPE),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        reason = status.phrase.encode()
        events = (
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def _abandon(self) -> None:
        """End the request whose body cannot be read any further: its app has nobody to answer."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._report_disconnect()

    def _close_after_answer(self) -> None:
        """Close the connection; what the client still sends of its body must not reset it."""
        if self.conn.their_state is not h11.SEND_BODY or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._is_refused = True  # the rest is read, and discarded
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _await_head(self, timeout_s: float) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(timeout_s, self.transport.abort)

    def _await_reader(self, size_before: int) -> None:
        """Drop the connection unless the client has read enough since the last look."""
        size = self.transport.get_write_buffer_size()
        if size > size_before - STALL_BYTES:
            self.transport.abort()
            return
        self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self._await_reader, size)


class _AnswerTransport:
    """Transport for one answer that holds its head back until its body begins."""

    def __init__(self, cycle: RequestResponseCycle, close: Callable[[], object]) -> None:
        self._cycle = cycle
        self._close = close
        self._transport = cycle.transport
        self._head: bytes | None = None  # b"" once it was sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head is None and self._cycle.response_started:
            self._head = data
            return
        head, self._head = self._head, b"" if self._cycle.response_started else None
        self._transport.write(head + data if head else data)

    def close(self) -> None:
        if self._head:
            self.write(b"")
        self._close()


def install() -> None:
    """Make uvicorn use this protocol; BentoML has no option for it. Before uvicorn starts."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{HttpProtocol.__name__}"


def _checked(request: h11.Request) -> h11.Request:
    """Return a request with its target as a path; raise RemoteProtocolError if it is ambiguous."""
    headers = dict(request.headers)
    if not request.http_version.startswith(b"1."):
        raise h11.RemoteProtocolError(
            "This server speaks HTTP/1.1.", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
        )
    if (count := len(request.headers)) > MAX_HEADERS:
        raise h11.RemoteProtocolError(
            f"The request has {count:,} headers; at most {MAX_HEADERS} are accepted.",
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        )
    if b"transfer-encoding" in headers:
        if b"content-length" in headers:
            raise h11.RemoteProtocolError(
                "Content-Length and Transfer-Encoding exclude each other."
            )
        if request.http_version < b"1.1":
            raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding.")
    absolute = _ABSOLUTE.fullmatch(request.target)  # as to a proxy (RFC 9112, section 3.2.2)
    if absolute is None:
        return request
    authority, target = absolute.groups()
    if authority.lower() != headers.get(b"host", authority).lower():
        raise h11.RemoteProtocolError("The target and the Host header name different hosts.")
    return h11.Request(
        method=request.method,
        target=target or b"/",
        headers=request.headers,
        http_version=request.http_version,
    )
