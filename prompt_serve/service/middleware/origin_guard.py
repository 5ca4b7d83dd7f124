"""Refuse changes that a web page of another origin makes a browser send.

A browser attaches what it remembers (a password, access to this machine's loopback interface) to
requests of any page. It says so in headers that no page can set: ``Sec-Fetch-Site``, and ``Origin``
where it does not send that (plain http to another machine, older browsers). Programs send neither.
The rules are those of Go's ``http.CrossOriginProtection``.

A key in a header of its own is let through: a page of another origin cannot send one without a
preflight request, which CORS answers.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_serve.errors import OriginNotAllowed
from prompt_serve.service.middleware.cors import parse_origins
from prompt_serve.service.problems import problem_of, problem_response

READ_METHODS = ("GET", "HEAD", "OPTIONS")
_OWN_SITES = ("same-origin", "none")  # none: the user typed the address
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_SHOWN = 200


class OriginGuard:
    """ASGI middleware: 403 to requests of foreign pages, unless they only read.

    Args:
        app: answers all other requests.
        origins: of pages that may send such requests, as ``cors_origins`` has them.
    """

    def __init__(self, app: ASGIApp, origins: str) -> None:
        self._app = app
        self._allowed = frozenset(parse_origins(origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in READ_METHODS:
            header = self._foreign_header(Headers(scope=scope))
            if header is not None:
                await problem_response(problem_of(_error(*header)))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _foreign_header(self, headers: Headers) -> tuple[str, str] | None:
        """Return name and value of the header that names a foreign page; None if none does."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if sends_explicit_key(headers) or "*" in self._allowed or origin in self._allowed:
            return None
        if site is not None:
            return None if site in _OWN_SITES else ("Sec-Fetch-Site", site)
        if origin is None or _is_own(origin, headers.get("host", "")):
            return None
        return "Origin", origin


def sends_explicit_key(headers: Headers) -> bool:
    """Return True if a program put a key into the request, other than a browser's password."""
    scheme = headers.get("authorization", "").partition(" ")[0]
    return scheme.lower() == "bearer" or "x-api-key" in headers


def _is_own(origin: str, host: str) -> bool:
    """Return True if the service answers for an origin under the name in the Host header."""
    try:
        own, page = urlsplit(f"//{host}"), urlsplit(origin)
        default = _DEFAULT_PORTS.get(page.scheme)
        # A proxy that terminates TLS leaves the default port out, whatever the scheme is here.
        same_port = (page.port or default) == (own.port or default)
    except ValueError:
        return False
    return default is not None and page.hostname == own.hostname and same_port


def _error(header: str, value: str) -> OriginNotAllowed:
    return OriginNotAllowed(
        f"{header} is {value[:_MAX_SHOWN]!r}: a web page of another origin sent this request, "
        f"which is not a read. To let a page call the service, list its origin in "
        f"PROMPT_SERVE_CORS_ORIGINS, or send a key as 'Authorization: Bearer ps_...'.",
        header=header,
        value=value[:_MAX_SHOWN],
    )
