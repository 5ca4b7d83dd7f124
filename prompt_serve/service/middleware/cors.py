"""Which web pages of other origins may ask the service (CORS); none by default."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_SENT = (
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "Traceparent",
    "X-Api-Key",
    "X-Request-Id",
    "X-Request-Timeout-Ms",
)
_READ = ("ETag", "Retry-After", "Server-Timing", "X-Request-Id")
_REMEMBERED_S = 600


def cross_origin(app: ASGIApp, origins: str) -> ASGIApp:
    """``app`` behind the answers to browsers' preflight requests.

    BentoML's own CORS stands behind our access control, which would ask preflights for a key, and
    browsers send none with them.

    Args:
        app: what answers all else.
        origins: as ``https://a.example, https://b.example``; ``*`` for all. Cookies are never
            allowed: keys come in a header.
    """
    allowed = [origin.strip().rstrip("/") for origin in origins.split(",") if origin.strip()]
    return CORSMiddleware(
        app,
        allow_origins=allowed,
        allow_methods=_METHODS,
        allow_headers=_SENT,
        expose_headers=_READ,
        max_age=_REMEMBERED_S,
    )
