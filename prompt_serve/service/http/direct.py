"""Answer the frequent routes without the routers of BentoML and FastAPI.

Both search a list of routes, and FastAPI resolves dependencies that these routes do not have; that
takes longer than all else that a request needs on the event loop. What answers is the same: the
endpoint of the route, and the same handlers of errors.
"""

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_serve.service.http.dependencies import get_core
from prompt_serve.service.problems import UnexpectedErrorMiddleware

PREFIX = "/v1"


class DirectRoutes:
    """ASGI middleware: answers these routes, and has the app answer all others below ``/v1``.

    Args:
        others: BentoML's router, which answers everything else.
        app: the app that is mounted there.
        routes: of the app; each with an endpoint that takes the request and the core.
    """

    def __init__(self, others: ASGIApp, app: FastAPI, routes: list[APIRoute]) -> None:
        self._others = others
        self._app = app
        self._routes = {
            (method, f"{PREFIX}{route.path}"): route
            for route in routes
            for method in route.methods or ()
        }
        handled = ExceptionMiddleware(_call_endpoint, handlers=app.exception_handlers)
        self._endpoint = UnexpectedErrorMiddleware(handled)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(f"{PREFIX}/"):
            await self._others(scope, receive, send)
            return
        # As Starlette's Mount does; the request log reads the route from the same dictionary.
        root_path = scope.get("root_path", "")
        scope["app_root_path"] = scope.get("app_root_path", root_path)
        scope["root_path"] = root_path + PREFIX
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope.update(app=self._app, route=route, endpoint=route.endpoint, path_params={})
        await self._endpoint(scope, receive, send)


async def _call_endpoint(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    response = await scope["endpoint"](request, await get_core(request))
    await response(scope, receive, send)
