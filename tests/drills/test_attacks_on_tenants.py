"""The attacks on tenants, pages and signatures notice what they are for: planted faults are found,
and what they send would get through where a check is missing."""

import asyncio
import contextlib
import io
import json
import random
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from drills.attacks import origins, quotas, registry_file, signatures, tokens
from drills.attacks.kind import Target
from drills.attacks.quotas import Limited, check_quota
from drills.attacks.tenancy import Task, Tenant, leaked, shape, word
from drills.attacks.tenants import tells_apart
from drills.stand import Stand
from prompt_serve.errors import NotAllowed, NotAuthenticated, PromptServeError, SignatureInvalid
from prompt_serve.prompts.prompt_file import from_bytes
from prompt_serve.service.middleware.oidc import KeySet, TokenVerifier, is_jwt, parse_scopes
from prompt_serve.service.middleware.origin_guard import OriginGuard
from prompt_serve.service.permissions import Quota
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from prompt_serve.signing.trusted_keys import SignaturePolicy
from tests.golden import GOLDEN
from tests.service.storage.test_registry import new


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Target whose service does not run."""
    return Target(Stand(tmp_path, {}))


SECRET = "qxvbzkwjfp"
PLANTED: dict[str, Callable[[str], httpx.Response]] = {
    "text": lambda secret: httpx.Response(404, text=f"Did you mean {secret}?"),
    "part of a word": lambda secret: httpx.Response(200, text=f"ours-{secret}-2"),
    "upper case": lambda secret: httpx.Response(200, text=secret.upper()),
    "header": lambda secret: httpx.Response(200, headers={"etag": f'"{secret}"'}),
    "name of a header": lambda secret: httpx.Response(200, headers={f"x-{secret}": "1"}),
    "escaped": lambda secret: httpx.Response(200, text="".join(f"%{ord(c):02x}" for c in secret)),
    "name in a zip": lambda secret: httpx.Response(200, content=zip_of(secret, b"")),
    "file in a zip": lambda secret: httpx.Response(200, content=zip_of("a", secret.encode())),
}


def zip_of(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("kind", PLANTED)
def test_a_word_of_another_tenant_is_found_unless_it_was_in_the_request(kind: str) -> None:
    answer = PLANTED[kind](SECRET)

    assert leaked(answer, "GET /v1/tasks?search=other", [SECRET, "another"]) == [SECRET]
    assert leaked(answer, f"GET /v1/tasks/{SECRET.upper()}", [SECRET, "another"]) == []


@pytest.mark.parametrize(
    ("answers", "tells"),
    [
        ("abba", True),
        ("aaaa", False),
        ("abca", False),  # those about what does not exist differ as well
        ("abbc", False),  # those about what exists differ as well
        ("aaba", False),
    ],
)
def test_answers_that_tell_what_exists(answers: str, tells: bool) -> None:
    assert (tells_apart(answers) is not None) == tells


def test_a_twin_has_other_words_everywhere_and_the_same_shape() -> None:
    draw = random.Random(0)
    words = tuple(word(draw) for _ in range(6))
    task = Task(f"a-{words[0]}", words[1], ("a" * 64, "b" * 64), words)
    tenant = Tenant("a-", {}, (task,))
    [twin] = tenant.twin(draw).tasks

    assert not set(twin.words) & set(words)
    assert (twin.name, twin.tag) == (f"a-{twin.words[0]}", twin.words[1])
    first, second = (httpx.Response(404, text=f"No {one.name.upper()}") for one in (task, twin))
    assert shape(first, {}) == shape(second, dict(zip(twin.words, words, strict=True)))
    assert shape(first, {}) != shape(second, {})


@pytest.mark.parametrize("names", [["a-1"], ["a-1", "a-2"], ["a-1", "a-2", "a-3", "b-1"]])
def test_what_a_tenant_has_beyond_its_quota_is_found(target: Target, names: list[str]) -> None:
    database = Database(f"sqlite:///{target.stand.home / 'registry.db'}")
    registry = Registry(database)
    for name in names:
        registry.put(new(name, GOLDEN["zero_shot"]))
    registry.put(new("a-1", GOLDEN["deep"]))
    database.close()
    own = [name for name in names if name.startswith("a-")]
    n_tasks, size_bytes = quotas.stored(target.stand, "a-")
    sizes = [len(new("a", GOLDEN[kind]).data) for kind in ("zero_shot", "deep")]

    assert (n_tasks, size_bytes) == (len(own), sum(sizes))
    for less in (0, 1):
        limit = Quota(tasks=n_tasks - less, stored_bytes=size_bytes - less)
        check_quota(target, Limited("a-", [], limit, b""))
        assert target.found["wrong"] == 2 * less


@pytest.fixture
def key_set(tmp_path: Path) -> KeySet:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [tokens._public_key(), tokens._unsuitable_key()]}))
    return KeySet(str(path))


@pytest.mark.parametrize("kind", [k for k in tokens._FORGERIES if "token" in k])
def test_forged_tokens_are_refused_and_the_one_they_are_made_from_is_not(
    key_set: KeySet, kind: str
) -> None:
    verifier = TokenVerifier(
        issuer=tokens.ISSUER,
        audience=tokens.AUDIENCE,
        key_set=key_set,
        claim="scope",
        scopes=parse_scopes(tokens.SCOPES),
    )
    draw = random.Random(kind)
    assert "admin" in verifier.verify(tokens._token(tokens._claims(draw))).permissions.actions
    for _ in range(60):
        token = tokens._FORGERIES[kind](draw, "")
        if is_jwt(token):
            with pytest.raises((NotAuthenticated, NotAllowed)):
                verifier.verify(token)


@pytest.mark.parametrize("allowed", ["", "*"])
def test_requests_of_pages_are_refused_by_their_headers_alone(target: Target, allowed: str) -> None:
    """A service that allows all origins answers them, but for names that point at this machine."""
    answered = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal answered
        answered += 1

    async def unused(*_: Any) -> Any: ...

    draw = random.Random(0)
    for _ in range(200):
        headers = origins._foreign(draw, target, {"cookie": "a=b"})
        headers.setdefault("host", f"127.0.0.1:{target.stand.port}")
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/v1/tasks", "headers": raw}
        asyncio.run(OriginGuard(app, allowed)(scope, unused, unused))
    assert answered == (200 if allowed else 0)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> signatures.Release:
    pytest.importorskip("cryptography", reason="the extra signing is not installed")
    made = signatures._release(tmp_path_factory.mktemp("keys"))
    signatures.revoke(made)
    return made


@pytest.mark.parametrize("kind", signatures._FORGERIES)
def test_forged_files_are_refused_and_most_of_them_for_the_signature(
    release: signatures.Release, kind: str
) -> None:
    policy = SignaturePolicy(release.trusted)
    draw = random.Random(kind)
    errors: list[PromptServeError] = []
    for _ in range(30):
        for name, current in release.current.items():
            policy.check(current)
            data = signatures._FORGERIES[kind](draw, release, name)
            if data in release.current.values():
                continue
            try:
                policy.check(data)
                policy.check_name(name, from_bytes(data).name)
            except PromptServeError as error:
                errors.append(error)
            else:
                pytest.fail(f"{kind} of {name} is accepted")
    assert errors
    if kind not in ("another length", "flipped bits"):
        assert sum(isinstance(error, SignatureInvalid) for error in errors) > len(errors) / 2


@pytest.mark.parametrize("name", [name for name in registry_file.HARMS if name != "disk full"])
def test_harm_is_done_and_undone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "registry.db"
    database = Database(f"sqlite:///{path}")
    registry = Registry(database)
    for n in range(5):
        registry.put(new(f"task-{n}", GOLDEN["zero_shot"]))

    def state() -> list[object]:
        files = sorted(tmp_path.glob("registry.db*"))
        # Readers leave marks in the index of the log.
        content = [file.read_bytes() for file in files if not file.name.endswith("-shm")]
        return [*content, *((file.name, file.stat().st_ino) for file in files)]

    before = state()
    harm = registry_file.HARMS[name]
    with harm.do(path, random.Random(name)):
        if name == "locked by another program":
            with (
                contextlib.closing(sqlite3.connect(path, timeout=0)) as other,
                pytest.raises(sqlite3.OperationalError, match="locked"),
            ):
                other.execute("BEGIN IMMEDIATE")
        else:
            assert state() != before
    if harm.heals:
        assert state() == before
    database.close()
