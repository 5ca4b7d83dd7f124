"""Verify signed tokens (JWT) of an OpenID Connect provider, with PyJWT.

The key in the provider's key set decides on the algorithm, never the token, and only asymmetric
ones count: a token cannot name ``none``, or use a public key as the secret of an HMAC.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
from prompt_serve.service.permissions import ROLES, Permissions
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
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

_log = logging.getLogger(__name__)


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


def parse_scopes(text: str) -> dict[str, Permissions]:
    """Parse ``VALUE=GRANT,GRANT; VALUE=...`` into permissions by value of the claim.

    A grant is an action, a role, ``task:NAME`` or ``tag:TAG``.

    Raises:
        ConfigInvalid: a part has another form.
    """
    found: dict[str, Permissions] = {}
    roles: dict[str, set[str]] = {role: set(actions) for role, actions in ROLES.items()}
    for part in filter(None, map(str.strip, text.split(";"))):
        value, equals, grants = part.rpartition("=")
        if not equals or not value.strip():
            raise _scopes_invalid(part, "expected VALUE=GRANT,GRANT")
        actions: set[str] = set()
        names, tags = [], []
        for grant in map(str.strip, grants.split(",")):
            if grant.startswith("task:"):
                names.append(grant.removeprefix("task:"))
            elif grant.startswith("tag:"):
                tags.append(grant.removeprefix("tag:"))
            else:
                actions |= roles.get(grant, {grant})
        try:
            found[value.strip()] = Permissions.checked(actions, names, tags)
        except RequestInvalid as error:
            raise _scopes_invalid(part, error.message) from error
    return found


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
            NotReady: no keys could be read yet.
        """
        with self._lock:
            age_s = self._clock() - self._read_at
            if age_s > _FRESH_S or (key_id not in self._keys and age_s > _UNKNOWN_EVERY_S):
                self._read()
            return self._keys.get(key_id)

    def _read(self) -> None:
        try:
            self._keys = _parse_keys(self._fetch() if self._is_url else self._read_file())
        except (OSError, ValueError, httpx.HTTPError) as error:
            _log.warning("the keys of the OpenID Connect provider cannot be read: %s", error)
            if not self._keys:
                raise NotReady(
                    "The keys of the OpenID Connect provider cannot be read.",
                    retry_after_s=_UNKNOWN_EVERY_S,
                ) from error
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
        scopes: permissions by value; of several, the first in this order counts.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        key_set: KeySet,
        claim: str,
        scopes: Mapping[str, Permissions],
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
        name = f"oidc:{claims['sub']}"[:200]
        if granted is None:
            raise NotAllowed(
                f"The claim {self._claim!r} of the token names nothing that this service knows.",
                action="read",
            )
        return Actor(name, OIDC_KEY_ID, granted)

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


def _values(claim: object) -> set[str]:
    if isinstance(claim, str):
        return set(claim.split())
    return {str(value) for value in claim} if isinstance(claim, list) else set()


def _scopes_invalid(part: str, reason: str) -> ConfigInvalid:
    return ConfigInvalid(f"PROMPT_SERVE_OIDC_SCOPES has {part!r}: {reason}")
