"""Remove middleware of BentoML's that does harm; its settings cannot switch it off.

* The timeout keeps a timer for every request, answered or not, until it expires, so a busy service
  grows by a few hundred bytes per request. When a client has disconnected, it waits for an answer
  that is never sent: the request never ends, and neither does a service that is told to stop.
  Deadlines are our own.
* Telemetry makes five spans per request and exports none of them, which takes as long as all of our
  middleware together. Traces are our own (``observability.tracing``).
"""

from bentoml._internal.server.http.traffic import TimeoutMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

_REMOVED = (TimeoutMiddleware, OpenTelemetryMiddleware)


class RemoveBentoMiddleware:
    """ASGI middleware that removes others from BentoML's own stack at startup."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # the first call, for which the stack is built
            remove_middleware(scope["app"].middleware_stack)
        await self._app(scope, receive, send)


def remove_middleware(app: object) -> None:
    """Unlink them from a chain of ASGI middlewares, each with the next one as ``app``."""
    while (inner := getattr(app, "app", None)) is not None:
        if isinstance(inner, _REMOVED):
            app.app = inner.app  # type: ignore[attr-defined]  # read by getattr above
        else:
            app = inner
