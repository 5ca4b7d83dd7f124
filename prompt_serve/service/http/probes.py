"""Probes: ``/readyz`` tells whether classification works and, apart, whether changes can be stored;
``/livez`` and ``/healthz``, whether the process needs a restart.

They answer in place of BentoML's own routes: its ``/readyz`` knows one bit only, and its router
takes longer than these answers.
"""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_serve.service.core import Core
from prompt_serve.service.health import NOT_STARTED

READY, ALIVE = "/readyz", ("/livez", "/healthz")


class Probes:
    """ASGI middleware that answers GET and HEAD of the probes.

    The status of ``/readyz`` is 200 if the service is ready, with ``?writable=true`` only if
    changes can be stored as well; else 503. The body is the same for both.

    Args:
        app: all other routes, and BentoML's liveness probes where the process is not alive.
        core: returns the core; None while the service starts or stops.
    """

    def __init__(self, app: ASGIApp, core: Callable[[], Core | None]) -> None:
        self._app = app
        self._core = core
        answers = {READY: self._readiness, **dict.fromkeys(ALIVE, self._liveness)}
        self._routes = {path: Route(path, answer) for path, answer in answers.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["method"] not in ("GET", "HEAD") or self._is_dead(route):
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # for the request log and the metrics
        response: Response = await route.endpoint(Request(scope))
        await response(scope, receive, send)

    def _is_dead(self, route: Route) -> bool:
        core = self._core()
        return route.path in ALIVE and core is not None and not core.health.is_alive

    async def _liveness(self, _: Request) -> Response:
        return PlainTextResponse("\n")

    async def _readiness(self, request: Request) -> JSONResponse:
        core = self._core()
        found = NOT_STARTED if core is None else await core.health.readiness()
        for_changes = request.query_params.get("writable", "") in ("true", "1")
        is_ok = found.ready and (found.writable or not for_changes)
        return JSONResponse(found.document(), 200 if is_ok else 503)
