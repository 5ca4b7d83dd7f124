"""CORS: origins of web pages that may call the service; none by default."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "If-Match",
    "If-None-Match",
    "Traceparent",
    "X-Api-Key",
    "X-Request-Id",
    "X-Request-Timeout-Ms",
)
_RESPONSE_HEADERS = (
    "ETag",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Server-Timing",
    "X-Request-Id",
)
_MAX_AGE_S = 600


def add_cors(app: ASGIApp, origins: str) -> ASGIApp:
    """Wrap ``app`` so that browsers' preflight requests are answered.

    BentoML's own CORS comes after our authentication, which would require a key for preflights, and
    browsers send none with them.

    Args:
        app: answers all other requests.
        origins: for example ``https://a.example, https://b.example``; ``*`` for all. Cookies are
            never allowed: keys come in a header.
    """
    return CORSMiddleware(
        app,
        allow_origins=parse_origins(origins),
        allow_methods=_METHODS,
        allow_headers=_REQUEST_HEADERS,
        expose_headers=_RESPONSE_HEADERS,
        max_age=_MAX_AGE_S,
    )


def parse_origins(origins: str) -> list[str]:
    """Split a comma-separated list of origins."""
    return [origin.strip().rstrip("/") for origin in origins.split(",") if origin.strip()]
