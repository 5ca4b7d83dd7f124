"""Paths that people try first: the page at the root, and documents without their ``/v1``.

BentoML answers the root with a page of its own, which knows none of our routes; it is at
``/bentoml/``. Its route ``POST /classify``, for its client, is answered by ``/v1/classify``, which
takes the same JSON: BentoML's own parsing answers malformed bodies with 500. Locations are
relative, so that a proxy may serve all under a prefix.
"""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

BENTOML_PAGE = "/bentoml/"
REDIRECTS = {
    "/": "v1/ui",
    "/ui": "v1/ui",
    "/v1": "v1/ui",
    "/v1/": "ui",
    "/docs": "v1/docs",
    "/openapi.json": "v1/openapi.json",
    "/bentoml": "bentoml/",
}
BENTOML_CLASSIFY = "/classify"
_CLASSIFY = "/v1/classify"
_METHODS = ("GET", "HEAD")


class RedirectMiddleware:
    """Redirect those paths; pass BentoML's own page and route on from where they are now."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if scope["method"] not in _METHODS:
            if scope["method"] == "POST" and path == BENTOML_CLASSIFY:
                scope = {**scope, "path": _CLASSIFY, "raw_path": _CLASSIFY.encode()}
            await self._app(scope, receive, send)
            return
        if path in REDIRECTS:
            await RedirectResponse(REDIRECTS[path])(scope, receive, send)
            return
        if path.startswith(BENTOML_PAGE):
            inner = path.removeprefix(BENTOML_PAGE.rstrip("/"))
            scope = {**scope, "path": inner, "raw_path": inner.encode()}
        await self._app(scope, receive, send)
