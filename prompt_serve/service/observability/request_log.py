"""The outermost middleware: gives a request its id, and tells of it when the answer is out.

That is: ``X-Request-Id`` and ``Server-Timing`` in the answer, a line in the log, the counters of
``/metrics``, and a span. What it tells of (``timing.RequestFacts``) others write while they work.
"""

import logging
import re
import secrets
import time
from urllib.parse import quote

from opentelemetry.trace import Span
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_serve.service.middleware.auth import OPEN
from prompt_serve.service.observability import metrics
from prompt_serve.service.observability.logs import FIELDS
from prompt_serve.service.observability.tracing import Tracing, trace_id_of
from prompt_serve.service.request_context import RequestContext, begin, end, server_timing

UNMATCHED = "unmatched"
CLIENT_GONE = 499  # nginx's number: the caller hung up before there was an answer

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STATIC = frozenset({"/assets", "/static_content"})
_KINDS = {
    "/classify": "classify",
    "/v1/classify": "classify",
    "/v1/embed": "embed",
    "/v1/score": "score",
    UNMATCHED: "unmatched",
}
_log = logging.getLogger("prompt_serve.request")


class Observed:
    """See the module.

    Args:
        app: all that answers, access control included.
        tracing: makes the spans.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        facts = RequestContext(request_id=_request_id(headers.get("x-request-id")))
        token = begin(facts)
        metrics.requests_in_progress.inc()
        try:
            with self._tracing.request(scope["method"], headers) as span:
                await self._answer(scope, receive, send, facts, span)
        finally:
            metrics.requests_in_progress.dec()
            end(token)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, facts: RequestContext, span: Span
    ) -> None:
        started = time.monotonic()
        status = CLIENT_GONE

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, facts, time.monotonic() - started)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except BaseException:
            status = 500 if status == CLIENT_GONE else status
            raise
        finally:
            self._tell(scope, facts, span, status, time.monotonic() - started)

    def _tell(
        self, scope: Scope, facts: RequestContext, span: Span, status: int, took_s: float
    ) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = route_of(scope)
        metrics.requests.labels(method, route, str(status)).inc()
        metrics.request_seconds.labels(_kind(method, route)).observe(took_s)
        self._tracing.describe(span, method, route, status, facts)
        _write_line(scope, facts, span, method, route, status, took_s)


def route_of(scope: Scope) -> str:
    """The template of the route that answered, ``unmatched`` where none did."""
    route = scope.get("route")
    if isinstance(route, Mount):
        return route.path if route.path in _STATIC else UNMATCHED
    path = getattr(route, "path", None)
    return UNMATCHED if path is None else f"{scope.get('root_path', '')}{path}"


def _request_id(given: str | None) -> str:
    """The caller's, if it is one that can stand in a log; or else a new one."""
    if given is not None and _SANE_ID.fullmatch(given):
        return given
    return secrets.token_hex(8)


def _add_headers(message: Message, facts: RequestContext, took_s: float) -> None:
    headers = MutableHeaders(scope=message)
    headers["X-Request-Id"] = facts.request_id
    if facts.timings.spent():
        headers["Server-Timing"] = server_timing(facts.timings, took_s)


def _kind(method: str, route: str) -> str:
    if route in _KINDS:
        return _KINDS[route]
    if route in OPEN or route == "/metrics":
        return "probe"
    return "read" if method in ("GET", "HEAD", "OPTIONS") else "change"


def _write_line(
    scope: Scope,
    facts: RequestContext,
    span: Span,
    method: str,
    route: str,
    status: int,
    took_s: float,
) -> None:
    level = logging.DEBUG if _kind(method, route) == "probe" and status < 400 else logging.INFO
    if not _log.isEnabledFor(level):
        return
    # Never the query: some callers put secrets there. The path is quoted again, because what was
    # decoded may hold line breaks.
    path = quote(scope["path"])[:200]
    fields = {
        "method": method,
        "route": route,
        "path": path,
        "status": status,
        "duration_ms": round(took_s * 1000, 2),
        "images": facts.images or None,
        "tasks": facts.tasks or None,
        "key": facts.actor.name,
        "key_id": facts.actor.key_id or None,
        "trace_id": trace_id_of(span),
    }
    counted = f", {facts.images} images, {facts.tasks} tasks" if facts.images else ""
    _log.log(
        level,
        "%s %s %d in %.1f ms%s, %s",
        *(method, path, status, took_s * 1000, counted, facts.actor.name),
        extra={FIELDS: fields},
    )
