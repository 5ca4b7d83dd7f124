"""``/readyz``: classification works; and, told apart, changes can be stored.

Answers in place of BentoML's own route, which knows one bit only.
"""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_serve.service.core import Core
from prompt_serve.service.health import NOT_STARTED

PATH = "/readyz"


class ReadinessProbe:
    """ASGI middleware that answers GET and HEAD of ``/readyz``.

    The status is 200 if the service is ready, with ``?writable=true`` only if changes can be stored
    as well; else 503. The body is the same for both.

    Args:
        app: all other routes.
        core: returns the core; None while the service starts or stops.
    """

    def __init__(self, app: ASGIApp, core: Callable[[], Core | None]) -> None:
        self._app = app
        self._core = core
        self._route = Route(PATH, self._answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_probe = scope["type"] == "http" and scope["path"] == PATH
        if not is_probe or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route  # for the request log and the metrics
        await (await self._answer(Request(scope)))(scope, receive, send)

    async def _answer(self, request: Request) -> JSONResponse:
        core = self._core()
        found = NOT_STARTED if core is None else await core.health.readiness()
        for_changes = request.query_params.get("writable", "") in ("true", "1")
        is_ok = found.ready and (found.writable or not for_changes)
        return JSONResponse(found.document(), 200 if is_ok else 503)
