"""Verify signed tokens (JWT) of an OpenID Connect provider, with PyJWT.

The key in the provider's key set decides on the algorithm, never the token, and only asymmetric
ones count: a token cannot name ``none``, or use a public key as the secret of an HMAC.
"""

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from prompt_serve.errors import (
    ConfigInvalid,
    DependencyMissing,
    NotAllowed,
    NotAuthenticated,
    NotReady,
    RequestInvalid,
)
from prompt_serve.service.permissions import NO_LIMITS, ROLES, Permissions, Quota
from prompt_serve.service.request_context import OIDC_KEY_ID, Actor
from prompt_serve.service.settings import Settings

_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
_REQUIRED_CLAIMS = ["exp", "iss", "aud", "sub"]
_LEEWAY_S = 10.0  # between the clocks of the provider and of this machine
_FRESH_S = 300.0  # a key that the provider removed is used for this long at most
_UNKNOWN_EVERY_S = 5.0  # tokens with invented key ids cause no more reads than this
_TIMEOUT_S = 5.0
_MAX_KEY_SET_BYTES = 1_000_000
_MAX_NAME = 200  # characters of a caller in the audit log
_QUOTAS = frozenset(field.name for field in fields(Quota))
_WHOLE_QUOTAS = _QUOTAS - {"requests_per_s", "images_per_s"}
_DIGEST = re.compile(r"#[0-9a-f]{32}$")  # at the end of names that were changed
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grant:
    """Permissions of a value of the claim, and the quota of each subject that has it."""

    permissions: Permissions
    quota: Quota = NO_LIMITS


def is_jwt(token: str) -> bool:
    """Return True if a token has the form of a JWT; keys of this service never have."""
    return _JWT.fullmatch(token) is not None


def token_verifier(settings: Settings) -> "TokenVerifier | None":
    """Return the verifier of the settings; None if no provider is set.

    Raises:
        ConfigInvalid: the settings are incomplete or invalid.
        DependencyMissing: PyJWT is not installed.
    """
    given = {
        "PROMPT_SERVE_OIDC_ISSUER": settings.oidc_issuer,
        "PROMPT_SERVE_OIDC_AUDIENCE": settings.oidc_audience,
        "PROMPT_SERVE_OIDC_KEYS": settings.oidc_keys,
        "PROMPT_SERVE_OIDC_SCOPES": settings.oidc_scopes,
    }
    if not any(given.values()):
        return None
    if missing := [name for name, value in given.items() if not value]:
        raise ConfigInvalid(f"Tokens of an OpenID Connect provider also need {', '.join(missing)}.")
    if find_spec("jwt") is None or find_spec("cryptography") is None:
        raise DependencyMissing(
            "PROMPT_SERVE_OIDC_ISSUER needs PyJWT: pip install 'prompt-serve[oidc]'"
        )
    return TokenVerifier(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        key_set=KeySet(settings.oidc_keys),
        claim=settings.oidc_claim,
        scopes=parse_scopes(settings.oidc_scopes),
    )


def parse_scopes(text: str) -> dict[str, Grant]:
    """Parse ``VALUE=GRANT,GRANT; VALUE=...`` into grants by value of the claim.

    A grant is an action, a role, ``task:NAME``, ``tag:TAG`` or the name and number of a quota, such
    as ``images_per_s:20``.

    Raises:
        ConfigInvalid: a part has another form.
    """
    found: dict[str, Grant] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        value, equals, grants = part.rpartition("=")
        if not equals or not value.strip():
            raise _scopes_invalid(part, "expected VALUE=GRANT,GRANT")
        try:
            found[value.strip()] = _parse_grants(grants)
        except (RequestInvalid, ValueError) as error:
            raise _scopes_invalid(part, str(error)) from error
    return found


def _parse_grants(text: str) -> Grant:
    """Return the grant of a list; raise RequestInvalid or ValueError if there is no such grant."""
    actions: set[str] = set()
    lists: dict[str, list[str]] = {"task": [], "tag": []}
    limits: dict[str, Any] = {}
    for grant in map(str.strip, text.split(",")):
        kind, colon, rest = grant.partition(":")
        if colon and kind in lists:
            lists[kind].append(rest)
        elif colon and kind in _QUOTAS:
            limits[kind] = _parse_limit(kind, rest)
        elif grant in ROLES:
            actions |= ROLES[grant]
        else:
            actions.add(grant)
    return Grant(Permissions.checked(actions, lists["task"], lists["tag"]), Quota(**limits))


def _parse_limit(kind: str, text: str) -> float:
    number = int(text) if kind in _WHOLE_QUOTAS else float(text)
    if not 0 < number < float("inf"):
        raise ValueError(f"{kind} is {text[:50]!r}; expected a number above 0")
    return number


class KeySet:
    """Public keys of a provider by id, read again when they are old or one is unknown.

    Thread-safe; blocks.

    Args:
        source: URL or file of a JSON Web Key Set (RFC 7517).
        clock: monotonic clock, in seconds.

    Raises:
        ConfigInvalid: the URL is neither https nor of this machine.
    """

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        url = urlsplit(source)
        is_local = url.scheme == "http" and url.hostname in ("127.0.0.1", "localhost", "::1")
        if url.scheme and url.scheme != "https" and not is_local:
            raise ConfigInvalid(
                f"PROMPT_SERVE_OIDC_KEYS is {source!r}; expected an https URL or a file: who can "
                f"change the keys on their way can sign tokens."
            )
        self._source = source
        self._is_url = bool(url.scheme)
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: Mapping[str | None, Any] = {}
        self._read_at = float("-inf")

    def find(self, key_id: str | None) -> Any | None:
        """Return the ``jwt.PyJWK`` of an id; None if there is none.

        Raises:
            NotReady: no keys could be read yet, or they are being read.
        """
        # Nobody but the one who asks it waits for a slow provider that was read before: tokens with
        # invented ids would hold all threads.
        if self._is_due(key_id):
            if self._lock.acquire(blocking=not self._keys):
                try:
                    if self._is_due(key_id):
                        self._read()
                finally:
                    self._lock.release()
            elif key_id not in self._keys:
                raise _keys_unread("are being read", retry_after_s=1.0)
        if not self._keys:
            raise _keys_unread("cannot be read", retry_after_s=_UNKNOWN_EVERY_S)
        return self._keys.get(key_id)

    def _is_due(self, key_id: str | None) -> bool:
        age_s = self._clock() - self._read_at
        return age_s > (_FRESH_S if key_id in self._keys else _UNKNOWN_EVERY_S)

    def _read(self) -> None:
        try:
            self._keys = _parse_keys(self._fetch() if self._is_url else self._read_file())
        except (OSError, ValueError, httpx.HTTPError) as error:
            _log.warning("the keys of the OpenID Connect provider cannot be read: %s", error)
        self._read_at = self._clock()

    def _read_file(self) -> bytes:
        return Path(self._source).expanduser().read_bytes()

    def _fetch(self) -> bytes:
        with httpx.stream("GET", self._source, timeout=_TIMEOUT_S) as response:
            response.raise_for_status()
            body = b""
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_KEY_SET_BYTES:
                    raise ValueError(f"more than {_MAX_KEY_SET_BYTES:,} bytes")
            return body


class TokenVerifier:
    """Verifies tokens and maps a claim to permissions. Thread-safe; blocks.

    Args:
        issuer: exact ``iss`` of tokens.
        audience: one of the ``aud`` of tokens.
        key_set: public keys of the provider.
        claim: its values, a list or separated by spaces, name the permissions.
        scopes: grants by value; of several, the first in this order counts.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        key_set: KeySet,
        claim: str,
        scopes: Mapping[str, Grant],
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._key_set = key_set
        self._claim = claim
        self._scopes = scopes

    def verify(self, token: str) -> Actor:
        """Return the caller that a token names.

        Raises:
            NotAuthenticated: the token is invalid, expired, for others or of others.
            NotAllowed: none of the claim's values has permissions here.
            NotReady: the provider's keys cannot be read.
        """
        claims = self._claims(token)
        given = _values(claims.get(self._claim))
        granted = next((self._scopes[value] for value in self._scopes if value in given), None)
        if granted is None:
            raise NotAllowed(
                f"The claim {self._claim!r} of the token names nothing that this service knows.",
                action="read",
            )
        name = _caller_name(str(claims["sub"]))
        return Actor(name, OIDC_KEY_ID, granted.permissions, granted.quota)

    def _claims(self, token: str) -> Mapping[str, Any]:
        import jwt

        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            key = self._key_set.find(key_id if isinstance(key_id, str) else None)
            if key is None:
                raise NotAuthenticated("The token is signed with a key that its issuer lacks.")
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": _REQUIRED_CLAIMS},
            )
        # A token may hold anything: numbers out of range, other types, keys that do not fit.
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise NotAuthenticated(f"The token is refused: {error}.") from error
        return claims


def _parse_keys(data: bytes) -> dict[str | None, Any]:
    """Return the usable public keys by id; a set of one key may leave the id out."""
    import jwt

    document = json.loads(data)
    listed: Sequence[Any] = document.get("keys", []) if isinstance(document, dict) else []
    found: dict[str | None, Any] = {}
    for entry in listed:
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
            continue  # of a kind that PyJWT does not know
        if key.algorithm_name in _ALGORITHMS and key.public_key_use in (None, "sig"):
            found[key.key_id] = key
    if not found:
        raise ValueError("there is no public key for signatures in it")
    if len(found) == 1:
        found.setdefault(None, next(iter(found.values())))
    return found


def _keys_unread(what: str, retry_after_s: float) -> NotReady:
    return NotReady(f"The keys of the OpenID Connect provider {what}.", retry_after_s=retry_after_s)


def _caller_name(subject: str) -> str:
    """Return the name of a caller, which logs and databases can hold; no two subjects share one, as
    they would share quotas."""
    name = f"oidc:{subject}"
    if len(name) <= _MAX_NAME and name.isprintable() and not _DIGEST.search(name):
        return name
    digest = hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()
    shown = "".join(filter(str.isprintable, name))
    return f"{shown[: _MAX_NAME - 33]}#{digest[:32]}"


def _values(claim: object) -> set[str]:
    if isinstance(claim, str):
        return set(claim.split())
    return {str(value) for value in claim} if isinstance(claim, list) else set()


def _scopes_invalid(part: str, reason: str) -> ConfigInvalid:
    return ConfigInvalid(f"PROMPT_SERVE_OIDC_SCOPES has {part!r}: {reason}")
