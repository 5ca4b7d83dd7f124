"""Keys and tokens that must not open anything: forged, changed, expired, revoked, for others.

The provider of the tokens is a file of public keys. An instance is one request with one credential,
by one of the headers that carry one; it must be refused, and never with an error of the service.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from drills.attacks.kind import Kind, Target
from drills.attacks.tenancy import bearer, word
from prompt_serve.service.storage.api_keys import Keys

ISSUER, AUDIENCE = "https://login.example/drill", "prompt-serve"
SCOPES = "operators=admin,read,classify,upload; readers=read,task:readers/*"
KEY_SET = Path(tempfile.gettempdir()) / f"prompt-serve-drill-{os.getpid()}.json"
REVOKED_WITHIN_S = 2.0  # docs/operations.md: a second; twice that on a machine that is busy
_REFUSED = (400, 401, 403, 431)
_ROUTES = (
    ("GET", "/v1/tasks"),
    ("GET", "/v1/info"),
    ("GET", "/v1/audit"),
    ("POST", "/v1/classify?task=*"),
    ("DELETE", "/v1/tasks/none"),
    ("GET", "/metrics"),
)

Claims = dict[str, Any]


async def attack(target: Target, draw: random.Random, count: int) -> None:
    """Send forged credentials, and use real ones beyond their end."""
    KEY_SET.write_text(json.dumps({"keys": [_public_key(), _unsuitable_key()]}))
    try:
        await _control(target, draw)
        for _ in range(count):
            await _instance(target, draw)
        for _ in range(max(1, count // 100)):
            await _ended_keys(target, draw)
    finally:
        KEY_SET.unlink()


async def _control(target: Target, draw: random.Random) -> None:
    """Check that what the forged ones are made from is accepted: else they would prove nothing."""
    with target.keys() as keys:
        token, _ = keys.create(word(draw), "admin")
    for name, credential in (("key", token), ("token", _token(_claims(draw)))):
        deadline = time.monotonic() + 30  # keys that could not be read are read again in 5 s
        while True:
            answer = await target.ask(
                "GET", "/v1/tasks", name=f"real {name}", headers=bearer(credential)
            )
            if answer.status_code == 200:
                break
            if time.monotonic() > deadline:
                target.fault("wrong", f"a real {name} is refused: {answer.text[:300]}")
                break
            await asyncio.sleep(0.2)


async def _instance(target: Target, draw: random.Random) -> None:
    kind, make = draw.choice(list(_FORGERIES.items()))
    credential = make(draw, target.admin_key)
    headers = _carried(draw, credential)
    method, path = draw.choice(_ROUTES)
    answer = await target.ask(method, path, name=kind, headers=headers)
    if answer.status_code not in _REFUSED and answer.status_code < 500:
        target.fault(
            "wrong", f"{answer.status_code} to {method} {path} with {kind}: {credential[:300]!r}"
        )
    if target.admin_key in answer.text:
        target.fault("leaked", f"a key in the answer to {kind}")


def _carried(draw: random.Random, credential: str) -> Mapping[str, str]:
    """Return a header that carries a credential; what no header can carry is cut."""
    text = "".join(c for c in credential if 0x20 < ord(c) < 0x7F)
    basic = base64.b64encode(f"{word(draw)}:{text}".encode()).decode()
    return draw.choice(
        (
            {"authorization": f"Bearer {text}"},
            {"authorization": f"bearer  {text}"},
            {"x-api-key": text},
            {"authorization": f"Basic {basic}"},
            {"authorization": f"Bearer {text}", "x-api-key": text},
        )
    )


# Keys of the service.


def _changed_key(draw: random.Random, key: str) -> str:
    at = draw.randrange(len(key))
    replaced = draw.choice([c for c in "abcdef0123456789_-ABCXYZ" if c != key[at]])
    return key[:at] + replaced + key[at + 1 :]


def _other_secret(draw: random.Random, key: str) -> str:
    """Return a key with the id of a real one."""
    prefix, key_id, _ = key.split("_", 2)
    secret = base64.urlsafe_b64encode(draw.randbytes(32)).decode().rstrip("=")
    return f"{prefix}_{key_id}_{secret}"


def _digest_as_secret(draw: random.Random, key: str) -> str:
    """Return a key made from what the database holds of it."""
    prefix, key_id, secret = key.split("_", 2)
    digest = hashlib.sha256(secret.encode()).digest()
    return f"{prefix}_{key_id}_{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def _part_of_key(draw: random.Random, key: str) -> str:
    cut = draw.randint(1, len(key) - 1)
    return draw.choice((key[:cut], key[cut:], f"{key}{word(draw, 1)}", f"{key}{key}", f"{key},x"))


# Tokens of the provider.


def _claims(draw: random.Random, **changes: object) -> Claims:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": word(draw),
        "exp": now + 600,
        "iat": now,
        "scope": "operators",
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def _wrong_claims(draw: random.Random, _: str) -> str:
    now = int(time.time())
    changes: tuple[Claims, ...] = (
        {"exp": now - draw.randint(60, 10**6)},
        {"exp": None},
        {"exp": draw.choice(("never", [now + 600], {}, -1, True, now - 60.5))},
        {"nbf": now + draw.randint(600, 10**6)},
        {"iat": now + draw.randint(600, 10**6)},
        {"aud": draw.choice((word(draw), [], [word(draw)], f"{AUDIENCE}/", AUDIENCE.upper(), 7))},
        {"aud": None},
        {"iss": draw.choice((f"{ISSUER}/", ISSUER.upper(), "", ISSUER[:-1], f"{ISSUER}\0"))},
        {"iss": None},
        {"sub": draw.choice((None, 7, [word(draw)], {}, True))},
        {"scope": draw.choice(("", "Operators", "operator", "operators,", [["operators"]], 7))},
        {"scope": draw.choice((None, {"operators": True}, "operators\0", True))},
    )
    return _token(_claims(draw, **draw.choice(changes)))


def _unsigned(draw: random.Random, _: str) -> str:
    header = {"alg": draw.choice(("none", "None", "NONE", "nOnE", "", None, 7)), "kid": "drill"}
    signature = draw.choice(("", "AA", base64.urlsafe_b64encode(draw.randbytes(64)).decode()))
    return f"{_part(header)}.{_part(_claims(draw))}.{signature.rstrip('=')}"


def _confused(draw: random.Random, _: str) -> str:
    """Use the public key, in some form, as the secret of an HMAC."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = _private_key("ours").public_key()
    spki = PublicFormat.SubjectPublicKeyInfo
    secret = draw.choice(
        (
            public.public_bytes(Encoding.PEM, spki),
            public.public_bytes(Encoding.PEM, spki).strip(),
            public.public_bytes(Encoding.DER, spki),
            json.dumps(_public_key()).encode(),
            b"s" * 32,  # of the key in the set that is for an HMAC
            b"",
        )
    )
    kind = draw.choice(("256", "384", "512"))
    header = {"alg": f"HS{kind}", "kid": draw.choice(("drill", "shared", None)), "typ": "JWT"}
    signed = f"{_part(header)}.{_part(_claims(draw))}"
    digest = hmac.new(secret, signed.encode(), f"sha{kind}").digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def _of_another_key(draw: random.Random, _: str) -> str:
    """Sign with a key of the attacker's own, and say where it is."""
    import jwt

    own = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(_private_key("theirs").public_key()))
    headers = draw.choice(
        (
            {"kid": "drill"},
            {"kid": word(draw)},
            {"kid": "drill", "jwk": own},
            {"kid": "drill", "jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/x"},
            {"kid": str(KEY_SET)},
            {"kid": "../../../dev/null"},
            {"kid": "' OR 1=1 --"},
            {"kid": "drill\0"},
            {},
        )
    )
    return _token(_claims(draw), key="theirs", headers=headers)


def _changed_token(draw: random.Random, _: str) -> str:
    """Change a real token so that what is signed, or the signature, is another."""
    header, claims, signature = _token(_claims(draw, scope="readers")).split(".")
    raised = _part(_claims(draw))
    other = _token(_claims(draw)).split(".")
    flipped = bytearray(base64.urlsafe_b64decode(signature + "=="))
    flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return draw.choice(
        (
            f"{header}.{raised}.{signature}",
            f"{header}.{claims}.{other[2]}",
            f"{header}.{other[1]}.{signature}",
            f"{header}.{claims}.{base64.urlsafe_b64encode(flipped).decode().rstrip('=')}",
            f"{header}.{claims}.",
            f"{header}.{claims}",
            f"{header}.{claims}.{signature[: draw.randint(1, 300)]}",
            f"{header}.{claims}.{signature}.{signature}",
            f"{_part({'alg': 'RS256', 'kid': 'drill', 'b64': False})}..{signature}",
        )
    )


def _strange_token(draw: random.Random, _: str) -> str:
    """Return parts that are no JSON objects, or too large, or too deep."""
    deep = base64.urlsafe_b64encode(b"[" * draw.choice((1000, 20_000))).decode().rstrip("=")
    large = _part({"alg": "RS256", "kid": word(draw, draw.choice((1000, 20_000)))})
    parts = (
        deep,
        large,
        _part([1]),
        _part("x"),
        _part(None),
        _part({}),
        _part({"alg": ["RS256"], "kid": "drill"}),
        _part({"alg": "RS256", "kid": {"a": 1}}),
        _part({"alg": "RS256", "kid": "drill", "crit": ["exp"]}),
        _part({"alg": "RS256", "kid": "drill", "b64": False, "crit": ["b64"]}),
        _part({"alg": "RS256", "kid": "drill", "zip": "DEF"}),
        "eyJ",
        base64.urlsafe_b64encode(draw.randbytes(40)).decode().rstrip("="),
    )
    return f"{draw.choice(parts)}.{draw.choice((*parts, _part(_claims(draw))))}.{_part('x')}"


_FORGERIES: Mapping[str, Callable[[random.Random, str], str]] = {
    "a changed key": _changed_key,
    "a key with another secret": _other_secret,
    "the digest of a key": _digest_as_secret,
    "a part of a key": _part_of_key,
    "a token with other claims": _wrong_claims,
    "an unsigned token": _unsigned,
    "a token signed with the public key": _confused,
    "a token of another key": _of_another_key,
    "a changed token": _changed_token,
    "a strange token": _strange_token,
}


def _token(
    claims: Claims, *, key: str = "ours", headers: Mapping[str, object] | None = None
) -> str:
    import jwt

    # Of its own encoding: PyJWT checks the types of some claims.
    header = {"alg": "RS256", "typ": "JWT", **({"kid": "drill"} if headers is None else headers)}
    signed = f"{_part(header)}.{_part(claims)}"
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    signature = algorithm.sign(signed.encode(), _private_key(key))
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@cache
def _private_key(name: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _public_key() -> dict[str, object]:
    import jwt

    document = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(_private_key("ours").public_key()))
    return {**document, "kid": "drill", "alg": "RS256", "use": "sig"}


def _unsuitable_key() -> dict[str, object]:
    secret = base64.urlsafe_b64encode(b"s" * 32).decode().rstrip("=")
    return {"kty": "oct", "k": secret, "kid": "shared", "alg": "HS256"}


# Keys that end while they are used.


def _revoke(keys: Keys, name: str) -> None:
    keys.revoke(name)


def _rotate_at_once(keys: Keys, name: str) -> None:
    keys.rotate(name, timedelta(0))


def _rotate_and_revoke(keys: Keys, name: str) -> None:
    keys.rotate(name, timedelta(hours=1))
    keys.revoke(name)


_ENDINGS = (_revoke, _rotate_at_once, _rotate_and_revoke, None)


async def _ended_keys(target: Target, draw: random.Random) -> None:
    """Use a key without a pause; after its end it must stop within a moment."""
    name, end = word(draw), draw.choice(_ENDINGS)
    # None: it expires by itself.
    expires = datetime.now(UTC) + timedelta(seconds=draw.uniform(0.5, 1.5)) if end is None else None
    with target.keys() as keys:
        token, _ = keys.create(name, "admin", expires)
        await target.ask("GET", "/v1/tasks", name="ending key", headers=bearer(token))
        if end is not None:
            end(keys, name)
    ended = time.monotonic() if expires is None else time.monotonic() + 1.5
    while True:
        sent = time.monotonic()
        answer = await target.ask("GET", "/v1/tasks", name="ended key", headers=bearer(token))
        if answer.status_code == 401:
            return
        if sent > ended + REVOKED_WITHIN_S:
            kind = "expiry" if end is None else end.__name__
            target.fault("wrong", f"{answer.status_code}: a key is accepted after its {kind}")
            return
        await asyncio.sleep(0.05)


KINDS: Mapping[str, Kind] = {
    "tokens": Kind(
        "forged, expired and revoked keys and tokens",
        attack,
        settings={
            "oidc_issuer": ISSUER,
            "oidc_audience": AUDIENCE,
            "oidc_keys": str(KEY_SET),
            "oidc_scopes": SCOPES,
        },
        keyed=True,
    ),
}
