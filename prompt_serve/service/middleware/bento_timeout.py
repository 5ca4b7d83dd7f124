"""BentoML's timeout of a request is taken out: its middleware does harm, and deadlines are ours.

It keeps a timer of every request, answered or not, until the timeout, so a busy service grows by a
few hundred bytes a request. And when a client has gone, it goes on waiting for an answer that
nobody sends any more: such a request never ends, and neither does a service that is told to stop.
The setting can be long or short, but it cannot be switched off.
"""

from bentoml._internal.server.http.traffic import TimeoutMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class WithoutBentoTimeouts:
    """Middleware that takes BentoML's out of the stack it stands in, as the service starts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # the first call, and the stack is made for it
            take_out_timeouts(scope["app"].middleware_stack)
        await self._app(scope, receive, send)


def take_out_timeouts(app: object) -> None:
    """Unlink timeouts from a chain of ASGI middlewares, each of which has the next as ``app``."""
    while (inner := getattr(app, "app", None)) is not None:
        if isinstance(inner, TimeoutMiddleware):
            app.app = inner.app  # type: ignore[attr-defined]  # it has one, as was just seen
        else:
            app = inner
