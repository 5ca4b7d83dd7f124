"""Authentication: all but the probes and the page's files needs a key that allows the action.

The middleware stands in front of all routes, BentoML's included, and decides by method and path
alone. A route that is not listed here needs ``admin``, and so does a path that does not exist.
Which tasks a key is limited to is decided where they are read and changed: ``storage.visibility``.

Until the first key is created, a service bound to the loopback interface answers every request that
addresses it by a loopback name. (A foreign web page can point its own host name at 127.0.0.1, but
its requests then carry that name.) A service bound to any other interface refuses to start.
"""

import asyncio
import base64
import ipaddress
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Literal

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_serve.errors import (
    NotAllowed,
    NotAuthenticated,
    NotReady,
    PromptServeError,
    QuotaExceeded,
)
from prompt_serve.service.middleware.api_key_cache import ApiKeyCache
from prompt_serve.service.middleware.oidc import TokenVerifier, is_jwt
from prompt_serve.service.middleware.rate_limits import RateLimits
from prompt_serve.service.permissions import Action, Permissions
from prompt_serve.service.problems import problem_of, problem_response
from prompt_serve.service.request_context import OIDC_KEY_ID, Actor, current_request
from prompt_serve.service.storage.api_keys import StoredKey, Token

PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/healthz"})
# The page asks for the key itself. Its files are the same in every service and hold nothing of it.
_PAGE_FILES = re.compile(r"/v1/ui(/ui\.(css|js)|/samples/[a-z-]+\.(png|md))?")
_READ_METHODS = ("GET", "HEAD")
_CHANGES = ("POST", "PUT", "PATCH", "DELETE")
# BentoML serves its own page with its own scripts; they contain nothing of the registry.
_READS_OF_ANY_KEY = re.compile(
    r"/|/docs\.json|/schema\.json|/(assets|static_content)(/.*)?"
    r"|/v1/(info|docs(/.*)?|openapi\.json)"
)
_TASKS = re.compile(r"/v1/tasks(/.*)?")
_ADMIN_OF_TASKS = re.compile(r"/v1/tasks/.+/pinned")  # takes memory that all tasks share
_CLASSIFY = frozenset({"/classify", "/v1/classify", "/v1/embed", "/v1/score"})
_OF_ALL_TASKS = re.compile(r"/metrics|/v1/versions/.*")  # that tell of all tasks, or change any
# Answers to requests without a key while no key exists: to all, to those for a loopback name, none.
AnonymousAccess = Literal["always", "loopback", "never"]
_REALM = 'realm="prompt-serve"'
_KEY_HELP = (
    "Send a key as 'Authorization: Bearer ps_...' or 'X-Api-Key: ps_...' (api_key= of the client, "
    "PROMPT_SERVE_API_KEY). Create one on the service's machine: prompt-serve keys create NAME"
)


def required_action(method: str, path: str) -> Action | Literal["any"] | None:
    """Return the action that a request needs; "any" if every key may send it, None if it needs no
    key."""
    if method in _READ_METHODS:
        if path in PUBLIC_PATHS or _PAGE_FILES.fullmatch(path):
            return None
        if _READS_OF_ANY_KEY.fullmatch(path):
            return "any"
        return "read" if path == "/metrics" or _TASKS.fullmatch(path) else "admin"
    if method == "POST" and path in _CLASSIFY:
        return "classify"
    if method in _CHANGES and _TASKS.fullmatch(path) and not _ADMIN_OF_TASKS.fullmatch(path):
        return "upload"
    return "admin"


def check_allowed(allowed: Permissions, method: str, path: str, caller: str) -> None:
    """Raise NotAllowed unless a caller with these permissions may send a request.

    Args:
        allowed: permissions of the caller.
        method: of the request.
        path: of the request.
        caller: name of the key, for the message.
    """
    action = required_action(method, path)
    if action in (None, "any"):
        return
    if action not in allowed.actions:
        raise NotAllowed(
            f"This needs a key that may {action}; {caller!r} may only "
            f"{' and '.join(sorted(allowed.actions))}. Use a key of the role admin, or one created "
            f"with --allow {action}.",
            action=action,
        )
    if _OF_ALL_TASKS.fullmatch(path) and not allowed.has_all_tasks:
        raise NotAllowed(
            f"This needs a key for all tasks; {caller!r} is limited to "
            f"{', '.join([*allowed.names, *allowed.tags][:10])}.",
            action=action,
        )


def is_loopback(host: str) -> bool:
    """Return True if an address to listen on is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class AuthMiddleware:
    """ASGI middleware: 401 without a valid key, 403 if it does not allow the request, 429 beyond
    its quota.

    Args:
        app: all routes.
        api_key_cache: returns the cache, None while the service starts.
        anonymous: requests that are answered without a key as long as no key exists.
        verifier: of tokens of an identity provider; None if there is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_key_cache: Callable[[], ApiKeyCache | None],
        anonymous: AnonymousAccess,
        verifier: TokenVerifier | None = None,
    ) -> None:
        self._app = app
        self._api_key_cache = api_key_cache
        self._anonymous = anonymous
        self._verifier = verifier
        self._limits = RateLimits()
        # Their own: a provider that is slow holds up nobody who has a key.
        self._token_threads = ThreadPoolExecutor(8, thread_name_prefix="token")
        self._use_recorder = ThreadPoolExecutor(1, thread_name_prefix="key use")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are no such routes
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._authenticate(scope)
        except PromptServeError as error:
            await _refuse(error, scope, receive, send)
            return
        if caller is None:
            await self._app(scope, receive, send)
        else:
            await self._answer(caller, scope, receive, send)

    async def _answer(self, caller: Actor, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request within the quota of its caller, and count it."""
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                # Caches that callers share know that for Authorization, but not for X-Api-Key.
                headers.setdefault("Cache-Control", "private")
                headers.update(self._limits.headers(caller.name, caller.quota))
            await send(message)

        context = current_request()
        context.admit_images = partial(self._limits.take, caller.name, caller.quota, "images")
        try:
            with self._limits.request(caller.name, caller.quota):
                await self._app(scope, receive, send_with_headers)
        except QuotaExceeded as error:
            if started:
                raise
            await _refuse(error, scope, receive, send_with_headers)
        finally:
            cache = self._api_key_cache()
            if cache is not None and caller.key_id != OIDC_KEY_ID:
                cache.count(caller.key_id, context.images)

    async def _authenticate(self, scope: Scope) -> Actor | None:
        """Note the caller in the request's context, also if it may not send the request.

        Returns:
            The caller; None for a request that needs no key.
        """
        if required_action(scope["method"], scope["path"]) is None:
            return None
        cache = self._api_key_cache()
        if cache is None:
            raise NotReady("The service is starting.", retry_after_s=1.0)
        headers = Headers(scope=scope)
        token = _sent_token(headers, scope["method"])
        if token is None:
            await self._check_anonymous(cache, headers)
            return None
        caller = await self._caller(cache, token)
        current_request().actor = caller
        check_allowed(caller.permissions, scope["method"], scope["path"], caller.name)
        return caller

    async def _caller(self, cache: ApiKeyCache, token: str) -> Actor:
        if self._verifier is not None and is_jwt(token):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._token_threads, self._verifier.verify, token)
        key = await _valid_key(cache, token)
        if cache.use_is_due(key):
            self._use_recorder.submit(cache.note_use, key)
        return Actor(key.name, key.id, key.permissions, key.quota)

    async def _check_anonymous(self, cache: ApiKeyCache, headers: Headers) -> None:
        has_keys = cache.has_keys
        if has_keys is None:
            has_keys = await run_in_threadpool(cache.read_has_keys)
        if has_keys or self._anonymous == "never":
            raise NotAuthenticated(f"This needs a key. {_KEY_HELP}.")
        if self._anonymous == "loopback" and not _is_loopback_name(headers.get("host", "")):
            raise NotAuthenticated(
                f"As long as no key exists, the service answers only requests to localhost or "
                f"127.0.0.1. {_KEY_HELP}."
            )


async def _refuse(error: PromptServeError, scope: Scope, receive: Receive, send: Send) -> None:
    response = problem_response(problem_of(error), _challenge(error, scope))
    await response(scope, receive, send)


async def _valid_key(cache: ApiKeyCache, text: str) -> StoredKey:
    token = Token.parse(text)
    if token is None:
        raise NotAuthenticated(f"The key is malformed. {_KEY_HELP}.")
    key = cache.remembered(token.id)
    if key is None:
        key = await run_in_threadpool(cache.find, token.id)
    if not token.opens(key) or key is None:
        raise NotAuthenticated(f"The key is unknown. {_KEY_HELP}.")
    state = key.state(datetime.now(UTC))
    if state != "valid":
        raise NotAuthenticated(f"Key {key.name!r} is {state}. {_KEY_HELP}.")
    return key


def _sent_token(headers: Headers, method: str) -> str | None:
    """Return the key that a request carries; None if it carries none."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if "x-api-key" in headers:
        return headers["x-api-key"].strip()
    # A browser that opens a route prompts for a password, which is the key, and from then on sends
    # it by itself, also when a page of another site triggers the request. Such a page cannot read
    # the answer, and it must not change anything either.
    same_origin = headers.get("sec-fetch-site") == "same-origin"
    if scheme.lower() == "basic" and (method in _READ_METHODS or same_origin):
        return _password(value)
    return None


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:  # not ASCII, not base64, or not UTF-8
        return ""


@lru_cache(maxsize=256)  # every request asks, most of them with the same name
def _is_loopback_name(host: str) -> bool:
    """Return True if a Host header names the loopback interface."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    return is_loopback(name.strip("[]").lower())


def _challenge(error: PromptServeError, scope: Scope) -> Mapping[str, str]:
    """Return the ``WWW-Authenticate`` header of a refusal (RFC 6750; browsers know only Basic)."""
    if isinstance(error, NotAllowed):
        return {
            "WWW-Authenticate": f'Bearer {_REALM}, error="insufficient_scope", '
            f'scope="{error.action}"'
        }
    if not isinstance(error, NotAuthenticated):
        return {}
    return {"WWW-Authenticate": f"{'Basic' if _is_navigation(scope) else 'Bearer'} {_REALM}"}


def _is_navigation(scope: Scope) -> bool:
    """Return True if a person opened the address in a browser.

    Only then may the browser prompt for a password: scripts of pages show their own form.
    """
    headers = Headers(scope=scope)
    mode = headers.get("sec-fetch-mode")  # sent on https and to loopback addresses only
    return mode in (None, "navigate") and "text/html" in headers.get("accept", "")
