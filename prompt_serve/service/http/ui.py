"""Two pages for people: ``/v1/ui`` to try tasks on images, ``/v1/docs`` for the API.

Everything they load comes from here, so they work without any other host; their Content-Security-
Policy allows nothing else. Swagger UI is the copy that the package fastapi-offline carries.
"""

import importlib.util
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

_WEB = Path(__file__).parents[1] / "web"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter(include_in_schema=False)


@router.get("/ui")
async def ui(request: Request) -> Response:
    """Choose tasks, drop images, see predictions."""
    return _file(request, _WEB / "ui.html")


@router.get("/ui/ui.css")
@router.get("/ui/ui.js")
@router.get("/docs/docs.js")
async def own_file(request: Request) -> Response:
    """What the pages load, of ours."""
    return _file(request, _WEB / Path(request.url.path).name)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The OpenAPI document, to read and to try."""
    return _file(request, _WEB / "docs.html")


@router.get("/docs/swagger-ui-bundle.js")
@router.get("/docs/swagger-ui.css")
async def swagger_file(request: Request) -> Response:
    """What the second page loads, of Swagger UI."""
    return _file(request, _swagger() / Path(request.url.path).name)


def _file(request: Request, path: Path) -> Response:
    data, etag = _read(path)
    headers = {**_SECURITY, "ETag": etag, "Cache-Control": "no-cache"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=_TYPES[path.suffix], headers=headers)


@cache
def _read(path: Path) -> tuple[bytes, str]:
    data = path.read_bytes()
    return data, f'"{sha256(data).hexdigest()[:32]}"'


@cache
def _swagger() -> Path:
    """Where fastapi-offline keeps its files; importing it would bring nothing that is needed."""
    found = importlib.util.find_spec("fastapi_offline")
    assert found is not None and found.origin is not None  # noqa: S101, PT018 (a dependency)
    return Path(found.origin).with_name("static")
