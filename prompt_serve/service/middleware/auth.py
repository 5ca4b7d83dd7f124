"""Who may ask what: every route needs a key, except the probes; changes need the role ``admin``.

The middleware stands outside of all routes, BentoML's as well, and goes by method and path alone: a
route that nobody thought of here needs ``admin``. So does a path that does not exist.

As long as there is no key at all, a service that listens on the loopback interface alone answers
everybody who asks it under a name of that interface. (A web page elsewhere can make its own name
point at 127.0.0.1; what it sends then names the page's host.) Any other service refuses to start.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Literal

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_serve.errors import (
    NotAllowed,
    NotAuthenticated,
    NotReady,
    PromptServeError,
)
from prompt_serve.service.middleware.api_key_cache import ApiKeyCache
from prompt_serve.service.problems import problem_of, problem_response
from prompt_serve.service.request_context import ANONYMOUS, Actor, current
from prompt_serve.service.storage.api_keys import Role, StoredKey, Token

OPEN = frozenset({"/livez", "/readyz", "/healthz"})
_READS = ("GET", "HEAD")
# BentoML serves its own page with its own scripts; they hold nothing of the registry.
_READ_BY_INFER = re.compile(
    r"/|/docs\.json|/schema\.json|/(assets|static_content)(/.*)?|/metrics"
    r"|/v1/(info|docs(/.*)?|ui(/.*)?|openapi\.json)|/v1/tasks(/.*)?"
)
_ASKED_BY_INFER = frozenset({"/classify", "/v1/classify", "/v1/embed", "/v1/score"})
# Always, when they ask under a name of the loopback interface, or never.
Anonymous = Literal["always", "loopback", "never"]
_REALM = 'realm="prompt-serve"'
_HOW = (
    "Send a key as 'Authorization: Bearer ps_...' or 'X-Api-Key: ps_...' (api_key= of the client, "
    "PROMPT_SERVE_API_KEY). Keys are made where the service runs: prompt-serve keys create NAME"
)


def role_needed(method: str, path: str) -> Role | None:
    """The role that a request needs; None where it needs no key."""
    if path in OPEN and method in _READS:
        return None
    if method in _READS and _READ_BY_INFER.fullmatch(path):
        return "infer"
    if method == "POST" and path in _ASKED_BY_INFER:
        return "infer"
    return "admin"


def is_enough(role: Role, needed: Role) -> bool:
    """Whether a key of ``role`` may do what needs ``needed``."""
    return role == "admin" or role == needed


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class AuthMiddleware:
    """ASGI middleware: 401 without a valid key, 403 with one whose role is too small.

    Args:
        app: all routes.
        key_ring: None as long as the service starts.
        anonymous: when those without a key are answered, as long as there is no key at all.
    """

    def __init__(
        self, app: ASGIApp, api_key_cache: Callable[[], ApiKeyCache | None], anonymous: Anonymous
    ) -> None:
        self._app = app
        self._key_ring = api_key_cache
        self._anonymous = anonymous
        self._notes = ThreadPoolExecutor(1, thread_name_prefix="key use")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are no such routes
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            current().actor = await self._admitted(scope)
        except PromptServeError as error:
            response = problem_response(problem_of(error), _challenge(error, scope))
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admitted(self, scope: Scope) -> Actor:
        needed = role_needed(scope["method"], scope["path"])
        if needed is None:
            return ANONYMOUS
        ring = self._key_ring()
        if ring is None:
            raise NotReady("The service is starting.", retry_after_s=1.0)
        headers = Headers(scope=scope)
        sent = _sent_key(headers, scope["method"])
        if sent is None:
            await self._check_anonymous(ring, headers)
            return ANONYMOUS
        key = await _valid_key(ring, sent)
        if not is_enough(key.role, needed):
            raise NotAllowed(
                f"This needs a key with the role {needed!r}; {key.name!r} has {key.role!r}.",
                role=needed,
            )
        if ring.use_is_due(key):
            self._notes.submit(ring.note_use, key)
        return Actor(key.name, key.id)

    async def _check_anonymous(self, ring: ApiKeyCache, headers: Headers) -> None:
        has_keys = ring.has_keys
        if has_keys is None:
            has_keys = await run_in_threadpool(ring.read_has_keys)
        if has_keys or self._anonymous == "never":
            raise NotAuthenticated(f"This needs a key. {_HOW}.")
        if self._anonymous == "loopback" and not _names_loopback(headers.get("host", "")):
            raise NotAuthenticated(
                f"Without any key the service answers under the names of its own machine alone "
                f"(localhost, 127.0.0.1). {_HOW}."
            )


async def _valid_key(ring: ApiKeyCache, sent: str) -> StoredKey:
    token = Token.parse(sent)
    if token is None:
        raise NotAuthenticated(f"What was sent is no key of this service. {_HOW}.")
    key = ring.remembered(token.id)
    if key is None:
        key = await run_in_threadpool(ring.find, token.id)
    if not token.opens(key) or key is None:
        raise NotAuthenticated(f"There is no such key. {_HOW}.")
    state = key.state(datetime.now(UTC))
    if state != "valid":
        raise NotAuthenticated(f"Key {key.name!r} is {state}. {_HOW}.")
    return key


def _sent_key(headers: Headers, method: str) -> str | None:
    """The key of a request; None where none was sent."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if "x-api-key" in headers:
        return headers["x-api-key"].strip()
    # A browser that opens the page asks for a password, which is the key, and sends it by itself
    # from then on, also where another site's page makes it ask. Those may read nothing of the
    # answer, but must not change anything either.
    own_page = headers.get("sec-fetch-site") == "same-origin"
    if scheme.lower() == "basic" and (method in _READS or own_page):
        return _password(value)
    return None


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _names_loopback(host: str) -> bool:
    """Whether a Host header names the loopback interface."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    return is_loopback(name.strip("[]").lower())


def _challenge(error: PromptServeError, scope: Scope) -> Mapping[str, str]:
    """What a refusal says in ``WWW-Authenticate`` (RFC 6750; browsers understand Basic alone)."""
    if isinstance(error, NotAllowed):
        return {
            "WWW-Authenticate": f'Bearer {_REALM}, error="insufficient_scope", scope="{error.role}"'
        }
    if not isinstance(error, NotAuthenticated):
        return {}
    wants_page = "text/html" in Headers(scope=scope).get("accept", "")
    return {"WWW-Authenticate": f"Basic {_REALM}" if wants_page else f"Bearer {_REALM}"}
