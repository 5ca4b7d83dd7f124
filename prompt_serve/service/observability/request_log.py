"""Outermost middleware: gives each request its id, and reports on it once it is answered.

A report is the headers ``X-Request-Id`` and ``Server-Timing``, a log line, the counters of
``/metrics`` and a span. Its facts come from the ``RequestContext``, which the code below fills in.
"""

import logging
import math
import random
import re
import time
from urllib.parse import quote

from opentelemetry.trace import Span
from starlette.datastructures import Headers
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_serve.errors import counted
from prompt_serve.schemas import STALE_HEADER
from prompt_serve.service.middleware.auth import PUBLIC_PATHS
from prompt_serve.service.observability import metrics
from prompt_serve.service.observability.logs import FIELDS
from prompt_serve.service.observability.tracing import Tracing, trace_id_of
from prompt_serve.service.request_context import OIDC_KEY_ID, RequestContext, request_scope
from prompt_serve.service.stage_timings import StageTimings

UNMATCHED = "unmatched"
CLIENT_CLOSED_REQUEST = 499  # nginx's status: the client disconnected before the answer

_VALID_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STATIC = frozenset({"/assets", "/static_content"})
_KINDS = {
    "/classify": "classify",
    "/v1/classify": "classify",
    "/v1/embed": "embed",
    "/v1/score": "score",
    UNMATCHED: "unmatched",
}
_REQUEST_ID, _SERVER_TIMING, _STALE = (
    b"x-request-id",
    b"server-timing",
    STALE_HEADER.lower().encode(),
)
_log = logging.getLogger("prompt_serve.request")


class RequestLogMiddleware:
    """ASGI middleware; see the module.

    Args:
        app: everything that answers requests, authentication included.
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
        context = RequestContext(
            request_id=_request_id(headers.get("x-request-id")),
            client=(scope.get("client") or ("",))[0],
        )
        metrics.requests_in_progress.inc()
        try:
            with request_scope(context), self._tracing.request(scope["method"], headers) as span:
                await self._answer(scope, receive, send, context, span)
        finally:
            metrics.requests_in_progress.dec()

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, context: RequestContext, span: Span
    ) -> None:
        started = time.monotonic()
        status = CLIENT_CLOSED_REQUEST

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, context, time.monotonic() - started)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except BaseException:
            status = 500 if status == CLIENT_CLOSED_REQUEST else status
            raise
        finally:
            self._report(scope, context, span, status, time.monotonic() - started)

    def _report(
        self, scope: Scope, context: RequestContext, span: Span, status: int, duration_s: float
    ) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = route_of(scope)
        metrics.requests_of(method, route, status).inc()
        metrics.request_seconds_of(_kind(method, route)).observe(duration_s)
        caller = context.actor
        if caller.key_id:
            name = OIDC_KEY_ID if caller.key_id == OIDC_KEY_ID else caller.name
            metrics.count_request_of(name, context.images)
        self._tracing.annotate(span, method, route, status, context)
        _write_line(scope, context, span, method, route, status, duration_s)


def route_of(scope: Scope) -> str:
    """Return the template of the route that answered, ``unmatched`` if none did."""
    route = scope.get("route")
    if isinstance(route, Mount):
        return route.path if route.path in _STATIC else UNMATCHED
    path = getattr(route, "path_format", None)  # without the convertors of ``path``
    return UNMATCHED if path is None else f"{scope.get('root_path', '')}{path}"


def server_timing(timings: StageTimings, total_s: float, passes: int = 0) -> str:
    """Return the value of a ``Server-Timing`` header, in milliseconds.

    A stage lasts from the start of its first image to the end of its last. The stages of a request
    with several images overlap, so their sum may exceed the total. ``passes`` is the number of
    passes of its images through the image encoder, if any.
    """
    stages = [(stage, entry.elapsed_s) for stage, entry in timings.by_stage().items()]
    listed = [f"{name};dur={s * 1000:.2f}" for name, s in [*stages, ("total", total_s)]]
    return ", ".join([*listed, *([f'passes;desc="{passes}"'] if passes else [])])


def _request_id(header: str | None) -> str:
    """Return the caller's id if it is safe to log, else a new one."""
    if header is not None and _VALID_ID.fullmatch(header):
        return header
    return f"{random.getrandbits(64):016x}"  # no secret: without the system call of one


def _add_headers(message: Message, context: RequestContext, duration_s: float) -> None:
    added = {_REQUEST_ID: context.request_id}
    if context.stale_s:
        added[_STALE] = str(math.ceil(context.stale_s))
    if context.timings:
        added[_SERVER_TIMING] = server_timing(context.timings, duration_s, context.passes)
    kept = [header for header in message.get("headers", ()) if header[0] not in added]
    message["headers"] = [
        *kept,
        *((name, value.encode("latin-1")) for name, value in added.items()),
    ]


def _kind(method: str, route: str) -> str:
    if route in _KINDS:
        return _KINDS[route]
    if route in PUBLIC_PATHS or route == "/metrics":
        return "probe"
    return "read" if method in ("GET", "HEAD", "OPTIONS") else "change"


def _write_line(
    scope: Scope,
    context: RequestContext,
    span: Span,
    method: str,
    route: str,
    status: int,
    duration_s: float,
) -> None:
    level = logging.DEBUG if _kind(method, route) == "probe" and status < 400 else logging.INFO
    if not _log.isEnabledFor(level):
        return
    # Never log the query: some callers put secrets there. Quote the decoded path again, because it
    # may contain line breaks.
    path = quote(scope["path"])[:200]
    fields = {
        "method": method,
        "route": route,
        "path": path,
        "status": status,
        "duration_ms": round(duration_s * 1000, 2),
        "images": context.images or None,
        "tasks": context.tasks or None,
        "stale_s": round(context.stale_s, 1) or None,
        "key": context.actor.name,
        "key_id": context.actor.key_id or None,
        "trace_id": trace_id_of(span),
    }
    counts = (
        f", {counted(context.images, 'image')}, {counted(context.tasks, 'task')}"
        if context.images
        else ""
    )
    _log.log(
        level,
        "%s %s %d in %.1f ms%s, %s",
        *(method, path, status, duration_s * 1000, counts, context.actor.name),
        extra={FIELDS: fields},
    )
