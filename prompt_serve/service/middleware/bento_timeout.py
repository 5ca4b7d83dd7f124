"""Remove BentoML's request timeout: its middleware does harm, and deadlines are our own.

It keeps a timer for every request, answered or not, until the timeout expires, so a busy service
grows by a few hundred bytes per request. When a client has disconnected, it waits for an answer
that is never sent: the request never ends, and neither does a service that is told to stop. The
setting can be changed, but it cannot be switched off.
"""

from bentoml._internal.server.http.traffic import TimeoutMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class RemoveBentoTimeout:
    """ASGI middleware that removes BentoML's timeout from its own stack at startup."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # the first call, for which the stack is built
            remove_timeouts(scope["app"].middleware_stack)
        await self._app(scope, receive, send)


def remove_timeouts(app: object) -> None:
    """Unlink timeouts from a chain of ASGI middlewares, each with the next one as ``app``."""
    while (inner := getattr(app, "app", None)) is not None:
        if isinstance(inner, TimeoutMiddleware):
            app.app = inner.app  # type: ignore[attr-defined]  # read by getattr above
        else:
            app = inner
