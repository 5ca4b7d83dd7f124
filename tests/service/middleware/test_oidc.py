"""Tokens of an identity provider: really signed, with its keys on a server of this machine."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from prompt_serve.errors import ConfigInvalid, NotAllowed, NotAuthenticated, NotReady
from prompt_serve.service.middleware.oidc import (
    KeySet,
    TokenVerifier,
    is_jwt,
    parse_scopes,
    token_verifier,
)
from prompt_serve.service.permissions import NO_LIMITS, Permissions, Quota
from prompt_serve.service.request_context import RequestContext
from prompt_serve.service.settings import Settings
from tests.service.process import service
from tests.service.secured_service import make_keys

jwt = pytest.importorskip("jwt", reason="TOKENS ARE NOT TESTED HERE: pip install 'pyjwt[crypto]'")
from cryptography.hazmat.primitives import serialization  # noqa: E402 (comes with it)
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402

ISSUER, AUDIENCE = "https://login.example/realm", "prompt-serve"
SCOPES = "operators=admin; vision=read,classify,upload,task:vision/*; guests=classify,tag:public"
ALGORITHMS = ["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
ENCODERS = {
    "RS256": "RSAAlgorithm",
    "RS512": "RSAAlgorithm",
    "PS256": "RSAPSSAlgorithm",
    "ES256": "ECAlgorithm",
    "ES384": "ECAlgorithm",
    "EdDSA": "OKPAlgorithm",
}


def new_key(algorithm: str) -> Any:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        return ec.generate_private_key(ec.SECP256R1() if "256" in algorithm else ec.SECP384R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def as_jwk(private: Any, algorithm: str, key_id: str) -> dict[str, Any]:
    encoder = getattr(jwt.algorithms, ENCODERS[algorithm])
    document = encoder.to_jwk(private.public_key(), as_dict=True)
    return {**document, "kid": key_id, "alg": algorithm, "use": "sig"}


class Provider:
    """Identity provider: private keys, and a server of the public ones."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, Any]] = {}
        self.requests = 0
        self.is_down = False
        self.answers = threading.Event()  # cleared: it is slow
        self.answers.set()
        self.add("first", "RS256")
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.requests += 1
                provider.answers.wait(60)
                body = json.dumps(provider.document()).encode()
                self.send_response(500 if provider.is_down else 200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"

    def add(self, key_id: str, algorithm: str) -> None:
        self.keys[key_id] = (algorithm, new_key(algorithm))

    def document(self) -> dict[str, Any]:
        keys = [as_jwk(key, algorithm, kid) for kid, (algorithm, key) in self.keys.items()]
        # Of kinds that must never verify a token, as providers list them.
        secret = base64.urlsafe_b64encode(b"s" * 32).decode().rstrip("=")
        others = [{"kty": "oct", "k": secret, "kid": "shared", "alg": "HS256"}, {"kty": "new"}, 7]
        return {"keys": [*others, *keys]}

    def token(self, key_id: str = "first", **changes: Any) -> str:
        algorithm, key = self.keys[key_id]
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "iat": now}
        claims |= {"scope": "openid vision"} | changes
        claims = {name: value for name, value in claims.items() if value is not None}
        return str(jwt.encode(claims, key, algorithm, headers={"kid": key_id}))


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    provider = Provider()
    thread = threading.Thread(target=provider.server.serve_forever)
    thread.start()
    yield provider
    provider.server.shutdown()
    thread.join()
    provider.server.server_close()


@pytest.fixture
def provider(running: Provider) -> Provider:
    running.is_down = False
    running.keys = {"first": running.keys["first"]}
    return running


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def verifier(provider: Provider, clock: Clock | None = None, **changes: Any) -> TokenVerifier:
    fields: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE, "claim": "scope"}
    fields |= {"scopes": parse_scopes(SCOPES), "key_set": KeySet(provider.url, clock or Clock())}
    return TokenVerifier(**(fields | changes))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_of_each_algorithm_names_its_caller(provider: Provider, algorithm: str) -> None:
    provider.add("other", algorithm)
    caller = verifier(provider).verify(provider.token("other"))

    assert caller.name == "oidc:alice"
    assert caller.permissions.actions == {"read", "classify", "upload"}
    assert caller.permissions.names == ("vision/*",)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1_000_000_000},
        {"exp": None},
        {"exp": "tomorrow"},
        {"nbf": 4_000_000_000},
        {"aud": "another-service"},
        {"aud": ["a", "b"]},
        {"aud": None},
        {"iss": "https://login.example/realm/"},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"sub": None},
        {"sub": 7},
    ],
)
def test_tokens_that_are_late_of_others_or_for_others(
    provider: Provider, changes: dict[str, Any]
) -> None:
    with pytest.raises(NotAuthenticated, match="The token is refused"):
        verifier(provider).verify(_encode_anything(provider, changes))


def _encode_anything(provider: Provider, changes: dict[str, Any]) -> str:
    """Sign claims that ``jwt.encode`` would refuse."""
    good = jwt.decode(provider.token(), options={"verify_signature": False})
    claims = {name: v for name, v in (good | changes).items() if v is not None}
    payload = json.dumps(claims).encode()
    key = provider.keys["first"][1]
    return str(jwt.api_jws.encode(payload, key, "RS256", headers={"kid": "first"}))


def _segment(document: dict[str, Any]) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=")


def _forged(provider: Provider, header: dict[str, Any], secret: bytes | None) -> str:
    payload = provider.token().split(".")[1].encode()
    signed = _segment(header) + b"." + payload
    digest = b"x" if secret is None else hmac.new(secret, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


def _public_bytes(provider: Provider, form: str) -> bytes:
    public = provider.keys["first"][1].public_key()
    encoding = getattr(serialization.Encoding, form)
    return bytes(public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))


def test_the_algorithm_of_the_token_decides_nothing(provider: Provider) -> None:
    """The known attacks: none, a public key as the secret of an HMAC, keys in the header."""
    own = new_key("RS256")
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    embedded = {"kid": "first", "jwk": as_jwk(own, "RS256", "first"), "jku": "http://evil.example"}
    forged = [
        *(_forged(provider, {"alg": name, "kid": "first"}, None) for name in ("none", "NONE", "")),
        *(
            _forged(provider, {"alg": "HS256", "kid": "first"}, _public_bytes(provider, form))
            for form in ("PEM", "DER")
        ),
        _forged(provider, {"alg": "HS256", "kid": "shared"}, b"s" * 32),
        _forged(provider, {"kid": "first"}, None),
        _forged(provider, {"alg": 7, "kid": ["first"]}, None),
        jwt.encode(claims, own, "RS256", headers=embedded),
        jwt.encode(claims, own, "RS256", headers={"kid": "unknown"}),
        jwt.encode(claims, provider.keys["first"][1], "RS512", headers={"kid": "first"}),
        provider.token()[:-8] + "AAAAAAAA",
    ]
    for token in forged:
        with pytest.raises(NotAuthenticated):
            verifier(provider).verify(token)


def test_a_new_key_is_found_and_a_removed_one_is_forgotten(provider: Provider) -> None:
    clock = Clock()
    verify = verifier(provider, clock).verify
    old = provider.token()
    verify(old)
    provider.add("second", "ES256")
    clock.now += 6
    verify(provider.token("second"))
    verify(old)
    provider.keys.pop("first")
    clock.now += 301
    with pytest.raises(NotAuthenticated, match="a key that its issuer lacks"):
        verify(old)
    provider.keys["first"] = ("RS256", new_key("RS256"))  # for the next test


def test_invented_key_ids_cause_few_reads_and_an_outage_ends_nothing(provider: Provider) -> None:
    clock = Clock()
    verify = verifier(provider, clock).verify
    provider.is_down = True
    before = provider.requests
    for _ in range(50):
        with pytest.raises(NotReady):
            verify(provider.token())
    assert provider.requests == before + 1
    provider.is_down = False
    clock.now += 6
    verify(provider.token())
    before = provider.requests
    for n in range(50):
        forged = _forged(provider, {"alg": "RS256", "kid": f"invented-{n}"}, None)
        with pytest.raises(NotAuthenticated):
            verify(forged)
    assert provider.requests == before
    provider.is_down = True
    clock.now += 1000
    verify(provider.token())


@pytest.mark.parametrize(
    ("value", "actions"),
    [
        ("operators", {"read", "classify", "upload", "admin"}),
        (["guests", "vision"], {"read", "classify", "upload"}),  # in the order of the setting
        ("a b guests", {"classify"}),
        (["guests"], {"classify"}),
        ("guests,vision", None),
        ("operators2", None),
        ("", None),
        (None, None),
        (7, None),
        ({"operators": True}, None),
        ([["operators"]], None),
    ],
)
def test_what_a_claim_allows(provider: Provider, value: object, actions: set[str] | None) -> None:
    token = provider.token(scope=None, groups=value)
    verify = verifier(provider, claim="groups").verify
    if actions is None:
        with pytest.raises(NotAllowed, match="'groups' of the token names nothing"):
            verify(token)
    else:
        assert verify(token).permissions.actions == actions


@pytest.mark.parametrize(
    "text",
    [
        *("vision", "=read", "a=write", "a=", "a=read,task:b c", "a=upload,tag:b", "a=task:b"),
        *("a=read,tasks:0", "a=read,tasks:1.5", "a=read,images_per_s:-1", "a=tasks:1"),
        *("a=read,images_per_s:nan", "a=read,images_per_s:inf", "a=read,images_per_s:"),
    ],
)
def test_scopes_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigInvalid, match="PROMPT_SERVE_OIDC_SCOPES has"):
        parse_scopes(text)


def test_values_may_be_addresses() -> None:
    found = parse_scopes("https://a.example/?x=1=read; b:c=infer ;")
    assert found["https://a.example/?x=1"].permissions == Permissions.checked(["read"])
    assert found["b:c"].permissions.role == "infer"


def test_incomplete_settings_and_keys_of_the_open_network(tmp_path: Path) -> None:
    assert token_verifier(Settings()) is None
    with pytest.raises(ConfigInvalid, match="also need PROMPT_SERVE_OIDC_AUDIENCE"):
        token_verifier(Settings(oidc_issuer=ISSUER))
    for source in ("http://login.example/keys", "ftp://127.0.0.1/keys", "http://127.0.0.1.evil/"):
        with pytest.raises(ConfigInvalid, match="expected an https URL"):
            KeySet(source)


def test_keys_of_a_file(provider: Provider, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    with pytest.raises(NotReady):
        KeySet(str(file)).find("first")
    file.write_text(json.dumps(provider.document()))
    verifier(provider, key_set=KeySet(str(file))).verify(provider.token())


@pytest.mark.parametrize(
    ("grant", "quota"),
    [
        ("requests_per_s:0.5", Quota(requests_per_s=0.5)),
        ("images_per_s:20", Quota(images_per_s=20)),
        ("concurrency:4,tasks:7", Quota(concurrency=4, tasks=7)),
        ("task:a/*,stored_bytes:1000000", Quota(stored_bytes=1_000_000)),
        ("task:tasks", NO_LIMITS),
    ],
)
def test_quotas_of_a_claim(provider: Provider, grant: str, quota: Quota) -> None:
    verify = verifier(provider, scopes=parse_scopes(f"vision=read,{grant}")).verify
    assert verify(provider.token()).quota == quota


def test_each_subject_has_its_own_turns_and_quotas(provider: Provider) -> None:
    verify = verifier(provider).verify
    subjects = ["alice", "bob", "", "x" * 300, "x" * 299 + "y", "x" * 250]
    actors = [verify(provider.token(sub=subject)) for subject in subjects]

    assert len({actor.name for actor in actors}) == len(subjects)
    assert max(len(actor.name) for actor in actors) <= 200
    turns = [RequestContext(client="10.0.0.1", actor=actor).turn.caller for actor in actors]
    assert len(set(turns)) == len(subjects)
    assert verify(provider.token(sub="alice")).name == actors[0].name


@pytest.mark.parametrize(
    "subject", ["a\0b", "a\nb", "a\x1b[31mb", "a\u2028b", "a\ud800b", "\u202eab", "a\x7fb", "\0"]
)
def test_the_name_of_a_caller_can_be_logged_and_stored_whatever_its_subject(
    provider: Provider, subject: str
) -> None:
    verify = verifier(provider).verify
    name = verify(provider.token(sub=subject)).name
    printable = "".join(filter(str.isprintable, subject))

    assert name.isprintable()
    assert name.encode()
    others = {verify(provider.token(sub=other)).name for other in (printable, "ab", "a")}
    assert name not in others
    # Nor has a subject the name that another one was given.
    assert verify(provider.token(sub=name.removeprefix("oidc:"))).name != name


@pytest.mark.parametrize("text", ["a.b", "ps_a.b.c=", "a.b.c.d", "", "a b.c.d", ".."])
def test_other_texts_are_no_tokens(text: str) -> None:
    assert not is_jwt(text)


@pytest.mark.serve
@pytest.mark.slow
def test_tokens_and_keys_over_http(provider: Provider, tiny_bundle: Path, tmp_path: Path) -> None:
    key = make_keys(tmp_path, operator="admin")["operator"]
    settings = {
        "oidc_issuer": ISSUER,
        "oidc_audience": AUDIENCE,
        "oidc_keys": provider.url,
        "oidc_scopes": SCOPES,
    }
    with (
        service(tmp_path, tiny_bundle, **settings) as served,
        httpx.Client(base_url=served.url, timeout=30) as http,
    ):

        def send(token: str, method: str, path: str, **body: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {token}"}
            return http.request(method, path, headers=headers, **body)

        token = provider.token()
        for name, status in (("vision/pets", 201), ("other/pets", 403)):
            body = {"name": name, "class_names": ["a", "b"]}
            assert send(token, "POST", "/v1/tasks", json=body).status_code == status
            assert send(key, "POST", "/v1/tasks", json=body).is_success
        listed = send(token, "GET", "/v1/tasks").json()["tasks"]
        assert [task["name"] for task in listed] == ["vision/pets"]
        assert send(token, "GET", "/v1/audit").status_code == 403
        changes = send(key, "GET", "/v1/audit?subject=vision/pets").json()["entries"]
        assert {change["actor"] for change in changes} == {"oidc:alice"}
        expired = provider.token(exp=int(time.time()) - 60)
        for wrong in (expired, "a.b.c", token[:-4]):
            answer = send(wrong, "GET", "/v1/tasks")
            assert answer.status_code == 401
            assert wrong not in answer.text
        assert http.get("/v1/tasks").status_code == 401


@pytest.mark.parametrize("key_id", ["second", "x", "", "first ", "../first"])
def test_nobody_waits_for_a_slow_provider_but_the_one_who_asks_it(
    provider: Provider, key_id: str
) -> None:
    """Tokens with invented key ids need no valid key: each would hold a thread for seconds."""
    clock = Clock()
    keys = KeySet(provider.url, clock)
    assert keys.find("first") is not None
    clock.now += 10
    asked = provider.requests
    provider.answers.clear()
    first = threading.Thread(target=keys.find, args=[key_id])
    first.start()
    try:
        while provider.requests == asked:
            assert first.is_alive()
        for _ in range(100):
            with pytest.raises(NotReady, match="are being read"):
                keys.find(key_id)
        assert keys.find("first") is not None
    finally:
        provider.answers.set()
        first.join()
    assert keys.find(key_id) is None
    assert provider.requests == asked + 1
