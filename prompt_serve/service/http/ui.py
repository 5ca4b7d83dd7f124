"""Two web pages: ``/v1/ui`` to try tasks on images, ``/v1/docs`` for the API.

The service serves all their files, so they work without any other host, and their Content-Security-
Policy allows no other. Swagger UI is the copy in the package fastapi-offline. The sample images are
part of the emoji sample. The files of ``/v1/ui`` are public (``middleware.auth``): nothing of the
service may be written into them.
"""

import importlib.util
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

_WEB = Path(__file__).parents[1] / "web"
_EMOJI = Path(__file__).parents[2] / "assets" / "emoji"
# Drawn in a style that the embedded backbones have not seen.
_SAMPLES = {
    "cat.png": "test/wildlife/emojione__cat-face.png",
    "pizza.png": "test/groceries/emojione__pizza.png",
    "basketball.png": "test/sports/emojione__basketball.png",
    "bicycle.png": "test/transport/emojione__bicycle.png",
    "guitar.png": "test/music/emojione__guitar.png",
    "rainbow.png": "test/weather/emojione__rainbow.png",
    "licenses.md": "LICENSES.md",
}
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
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
    """Page to choose tasks, drop images and see predictions."""
    return _file(request, _WEB / "ui.html")


@router.get("/ui/ui.css")
@router.get("/ui/ui.js")
@router.get("/docs/docs.js")
async def own_file(request: Request) -> Response:
    """Own files of the pages."""
    return _file(request, _WEB / Path(request.url.path).name)


async def sample(request: Request) -> Response:
    """Sample images of the page, and their licenses."""
    return _file(request, _EMOJI / _SAMPLES[Path(request.url.path).name])


for _name in _SAMPLES:  # one route each, so that all paths without a key are listed
    router.add_api_route(f"/ui/samples/{_name}", sample)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI for the OpenAPI document."""
    return _file(request, _WEB / "docs.html")


@router.get("/docs/swagger-ui-bundle.js")
@router.get("/docs/swagger-ui.css")
async def swagger_file(request: Request) -> Response:
    """Swagger UI's files for ``/v1/docs``."""
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
    """Return the folder of fastapi-offline's files, without importing the package."""
    spec = importlib.util.find_spec("fastapi_offline")
    assert spec is not None and spec.origin is not None  # noqa: S101, PT018 (a dependency)
    return Path(spec.origin).with_name("static")
