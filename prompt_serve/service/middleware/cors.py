"""CORS: origins of web pages that may call the service; none by default."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
_VARY = (b"vary", b"Origin")


class _Cors(CORSMiddleware):
    """Starlette's middleware, without its copies of headers where no page sent the request."""

    async def simple_response(
        self, scope: Scope, receive: Receive, send: Send, request_headers: Headers
    ) -> None:
        if "origin" in request_headers:
            await super().simple_response(scope, receive, send, request_headers)
            return

        async def send_varied(message: Message) -> None:
            headers = message.get("headers", ())
            if message["type"] != "http.response.start":
                await send(message)
            elif any(name.lower() == b"vary" for name, _ in headers):
                await self.send(message, send, request_headers)
            else:
                await send({**message, "headers": [*headers, _VARY]})

        await self.app(scope, receive, send_varied)


def add_cors(app: ASGIApp, origins: str) -> ASGIApp:
    """Wrap ``app`` so that browsers' preflight requests are answered.

    BentoML's own CORS comes after our authentication, which would require a key for preflights, and
    browsers send none with them.

    Args:
        app: answers all other requests.
        origins: for example ``https://a.example, https://b.example``; ``*`` for all. Cookies are
            never allowed: keys come in a header.
    """
    return _Cors(
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
