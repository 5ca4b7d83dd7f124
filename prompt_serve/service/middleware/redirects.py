"""Paths that people try first: the page at the root, and documents without their ``/v1``.

BentoML answers the root with a page of its own, which knows none of our routes; it is at
``/bentoml/``. Locations are relative, so that a proxy may serve all under a prefix.
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
_METHODS = ("GET", "HEAD")


class RedirectMiddleware:
    """Redirect those paths; pass BentoML's own page on from where it is now."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path in REDIRECTS:
            await RedirectResponse(REDIRECTS[path])(scope, receive, send)
            return
        if path.startswith(BENTOML_PAGE):
            inner = path.removeprefix(BENTOML_PAGE.rstrip("/"))
            scope = {**scope, "path": inner, "raw_path": inner.encode()}
        await self._app(scope, receive, send)
