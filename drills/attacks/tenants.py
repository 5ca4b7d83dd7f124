"""Tenants that try to read, guess and change the tasks of others.

An instance is one request by one tenant about the tasks of another. It is sent twice: with names,
tags and versions that exist, and with others, as long, that do not. Nothing but these may differ
between the answers, and neither may have a word of the other tenant that was not in the request.
"""

import base64
import json
import math
import random
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from urllib.parse import quote, urlencode

import httpx

from drills.attacks.kind import Kind, Target, zipped
from drills.attacks.tenancy import Tenant, bearer, credentials, leaked, make_tenant, shape, word
from prompt_serve.service.http.app import create_app
from tests.service.prompts import picture

_CHECK_EVERY = 40  # instances
_CREDENTIALS = 5  # of each tenant, beside those of its owner
_MOST_PAIRS = 60  # of timed requests
_SURE = 4.5  # standard deviations; a difference has to be seen twice
_CACHED = (200, 204, 404, 405, 410, 414)  # by caches that callers share, unless told otherwise
_UNUSED = random.Random(0)
_PNG = {"content-type": "image/png"}
_JSON = {"content-type": "application/json"}
_ZIP = {"content-type": "application/zip"}


@dataclass(frozen=True)
class Request:
    """Request of an instance."""

    method: str
    path: str
    content: bytes = b""
    headers: Mapping[str, str] | None = None

    @property
    def text(self) -> str:
        """All of it, to compare answers with."""
        return f"{self.path}\n{self.headers}\n{self.content.decode('latin-1')}"


Drawing = Callable[[random.Random, Tenant, Tenant], Request]


async def attack(target: Target, draw: random.Random, count: int) -> None:
    """Let three tenants attack each other."""
    spaces = [word(draw, 6) + draw.choice("-./") for _ in range(3)]
    tenants = [await make_tenant(target, draw, space) for space in spaces]
    tenants = [
        replace(one, credentials=credentials(target, draw, one, _CREDENTIALS)) for one in tenants
    ]
    before = await _state(target, tenants)
    for n in range(count):
        await _instance(target, random.Random(draw.random()), tenants)
        if n % _CHECK_EVERY == _CHECK_EVERY - 1:
            await _compare(target, tenants, before)
    await _give_cursors(target, tenants)
    await _time_answers(target, draw, tenants, min(_MOST_PAIRS, count // 4))
    await _compare(target, tenants, before)


async def _instance(target: Target, draw: random.Random, tenants: Sequence[Tenant]) -> None:
    own, other = draw.sample(tenants, 2)
    who, key = draw.choice(list(own.credentials.items()))
    make, seed = draw.choice(_DRAWINGS), draw.random()
    first, second = other.twin(draw), other.twin(draw)
    secrets = set().union(*(one.secrets for one in tenants if one is not own))
    answers: list[tuple[int, str]] = []
    for victim in (other, first, second, other):
        request = make(random.Random(seed), own, victim)
        name = f"{who}: {make.__name__} {request.method} {request.path}"
        answer = await _send(target, request, key, name)
        if found := leaked(answer, request.text, secrets):
            target.fault("leaked", f"{found} in the answer to {name}: {answer.text[:300]}")
        if answer.status_code in _CACHED and "private" not in answer.headers.get(
            "cache-control", ""
        ):
            target.fault("leaked", f"a cache may give others the answer to {name}")
        answers.append((answer.status_code, shape(answer, _words(victim, other))))
        if len(answers) == 2 and answers[0] == answers[1]:
            return
    for one in (tells_apart([a for a, _ in answers]), tells_apart([a for _, a in answers])):
        if one is not None:
            target.fault("leaked", f"that it exists, {name}: {one}")


def tells_apart(answers: Sequence[object]) -> str | None:
    """Say how answers about what exists, two times what does not, and what exists again differ.

    None if they do not, or if they differ by chance: then those about the same differ as well.
    """
    real, first, second, again = answers
    if real == again and first == second and real != first:
        return f"{str(real)[:400]!r}, not {str(first)[:400]!r}"
    return None


def _words(victim: Tenant, other: Tenant) -> dict[str, str]:
    """Return what occurs in a twin, each with what the tenant has in its place."""
    if victim is other:
        return {}
    pairs: dict[str, str] = {}
    for twin, task in zip(victim.tasks, other.tasks, strict=True):
        pairs |= dict(zip(twin.words, task.words, strict=True))
        for ours, theirs in zip(twin.versions, task.versions, strict=True):
            pairs |= {ours[:n]: theirs[:n] for n in (64, 63, 12, 8, 7)}
    escaped = {_escaped(ours, _UNUSED): _escaped(pairs[ours], _UNUSED) for ours in pairs}
    return pairs | escaped


async def _send(
    target: Target, request: Request, key: Mapping[str, str], name: str
) -> httpx.Response:
    return await target.ask(
        request.method,
        request.path,
        name=name,
        content=request.content,
        headers={**(request.headers or {}), **key},
    )


async def _state(target: Target, tenants: Sequence[Tenant]) -> list[object]:
    """Return all that the operator sees of the tenants' tasks."""
    operator = bearer(target.admin_key)
    found: list[object] = []
    for tenant in tenants:
        query = urlencode({"search": tenant.space, "limit": 1000})
        listed = await target.ask("GET", f"/v1/tasks?{query}", name="state", headers=operator)
        names = [one["name"] for one in listed.json()["tasks"]]
        found.append([one for one in names if one in {task.name for task in tenant.tasks}])
        for task in tenant.tasks:
            for path in (f"/v1/tasks/{task.name}", f"/v1/tasks/{task.name}/history"):
                answer = await target.ask("GET", path, name="state", headers=operator)
                found.append(answer.json())
    return found


async def _compare(target: Target, tenants: Sequence[Tenant], before: list[object]) -> None:
    after = await _state(target, tenants)
    for one, other in zip(before, after, strict=True):
        if one != other:
            target.fault("wrong", f"changed by another tenant: {one} is now {other}")


async def _give_cursors(target: Target, tenants: Sequence[Tenant]) -> None:
    """Continue the lists of one tenant with the keys of another."""
    for own in tenants:
        path = f"/v1/tasks/{own.tasks[0].name}/history?limit=1"
        pages = [("/v1/tasks?limit=1", "/v1/tasks"), (path, path)]
        for first, following in pages:
            page = await target.ask("GET", first, name="cursor", headers=own.owner)
            cursor = page.json()["next"]
            for other in tenants:
                if other is own:
                    continue
                sign = "&" if "?" in following else "?"
                request = Request("GET", f"{following}{sign}cursor={cursor}")
                answer = await _send(target, request, other.owner, "given cursor")
                if found := leaked(answer, request.text, own.secrets):
                    target.fault("leaked", f"{found} by a cursor: {answer.text[:300]}")


async def _time_answers(
    target: Target, draw: random.Random, tenants: Sequence[Tenant], pairs: int
) -> None:
    """Compare the times of answers about names that are taken with those that are free."""
    for path in ("/v1/tasks/{}", "/v1/tasks/{}/history", "/v1/classify?task={}", "DELETE", "PUT"):
        own, other = draw.sample(tenants, 2)
        signs = []
        for _ in range(2):
            slower = 0
            for _ in range(pairs):
                twin = other.twin(draw)
                order = [(other, 1), (twin, -1)]
                draw.shuffle(order)
                seconds = {
                    sign: await _seconds(target, path, one.tasks[0].name, own)
                    for one, sign in order
                }
                slower += seconds[1] > seconds[-1]
            deviations = (slower - pairs / 2) / math.sqrt(max(1, pairs) / 4)
            signs.append(0 if abs(deviations) < _SURE else math.copysign(1, deviations))
            if not signs[0]:
                break
        if len(signs) == 2 and signs[0] == signs[1]:
            target.fault("leaked", f"that it exists, by the time of {path}: {slower} of {pairs}")


async def _seconds(target: Target, path: str, name: str, own: Tenant) -> float:
    method, content = "GET", b""
    headers: Mapping[str, str] = {}
    if "classify" in path:
        method, content, headers = "POST", _picture(), _PNG
    elif path in ("DELETE", "PUT"):
        method, path, content = path, "/v1/tasks/{}", b"no prompt file"
    request = Request(method, path.format(name), content, headers)
    started = time.perf_counter()
    await _send(target, request, own.owner, "timed")
    return time.perf_counter() - started


@cache
def _picture() -> bytes:
    return picture()


@cache
def _routes_of_a_task() -> list[tuple[str, str]]:
    return [
        (method.upper(), f"/v1{path}")
        for path, methods in create_app().openapi()["paths"].items()
        for method in methods
        if "{name}" in path
    ]


# How a name can be spelled.


def _fullwidth(name: str, _: random.Random) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in name)


def _escaped(name: str, _: random.Random) -> str:
    return "".join(f"%{ord(c):02x}" for c in name)


def _swapped(name: str, draw: random.Random) -> str:
    return "".join(draw.choice((c.upper(), c)) for c in name)


def _cut(name: str, draw: random.Random) -> str:
    return name[: draw.randint(1, len(name) - 1)]


def _with_marks(name: str, draw: random.Random) -> str:
    at = draw.randint(0, len(name))
    return name[:at] + draw.choice("\u200b\u0301\u00ad .;*%_'\"\\~") + name[at:]


_SPELLINGS: tuple[Callable[[str, random.Random], str], ...] = (
    lambda name, _: name,
    lambda name, _: name,
    lambda name, _: quote(name, safe=""),
    lambda name, _: quote(quote(name, safe=""), safe=""),
    _fullwidth,
    _escaped,
    _swapped,
    _cut,
    _with_marks,
    lambda name, _: name.upper(),
    lambda name, _: unicodedata.normalize("NFD", name.replace("c", "ç")),
    lambda name, draw: name + draw.choice(("/", "/.", "/..", "//", "%2f", "%00", "?", "@", " ")),
    lambda name, draw: draw.choice(("/", "./", "../", "..%2f", "%2e%2e/", "//")) + name,
)


def _spelled(draw: random.Random, own: Tenant, other: Tenant) -> str:
    """Return the name of a task of the other tenant, or of a version of it, in some spelling."""
    task = draw.choice(other.tasks)
    name = draw.choice(_SPELLINGS)(task.name, draw)
    kind = draw.random()
    if kind < 0.2:
        version = draw.choice(task.versions)[: draw.choice((7, 8, 12, 63, 64))]
        name = f"{name}@{draw.choice((version, version.upper()))}"
    elif kind < 0.3:  # a version of theirs, in the history of ours
        name = f"{draw.choice(own.tasks).name}@{draw.choice(task.versions)[:12]}"
    elif kind < 0.4:
        name = f"{own.space}{draw.choice(('../', '%2e%2e/', '/', ''))}{name}"
    return name


# What is asked.


def _a_task(draw: random.Random, own: Tenant, other: Tenant) -> Request:
    method, path = draw.choice(_routes_of_a_task())
    path = path.replace("{name}", quote(_spelled(draw, own, other), safe="/%@*~;.:'\"\\"))
    task = draw.choice(other.tasks)
    etag = f'"{draw.choice(task.versions)}"'
    conditions: tuple[dict[str, str], ...] = (
        {},
        {},
        {"if-match": etag},
        {"if-match": "*"},
        {"if-none-match": "*"},
    )
    headers = dict(draw.choice((*conditions, {"if-none-match": etag})))
    body: object = None
    if path.endswith("/alias"):
        body = {"of": draw.choice((task.name, own.tasks[0].name, f"{task.name}@{etag[1:9]}"))}
    elif path.endswith("/tags"):
        tags = [draw.choice((task.tag, "shared", "taken"))]
        body = {"tags": tags} if method == "PUT" else {"add": tags, "remove": ["shared"]}
    elif path.endswith("/pinned"):
        body = {"pinned": True}
    elif path.endswith("/rollback"):
        body = {"version": draw.choice(task.versions)}
    elif path.endswith("/history"):
        path += draw.choice(("", "?limit=1", f"?cursor={_cursor(draw.randint(0, 500))}"))
    if body is None:
        return Request(method, path, b"no prompt file" if method == "PUT" else b"", headers)
    return Request(method, path, json.dumps(body).encode(), {**headers, **_JSON})


def _own_task(draw: random.Random, own: Tenant, other: Tenant) -> Request:
    """Point at what is theirs from what is ours."""
    task, ours = draw.choice(other.tasks), f"{own.space}{word(draw)}"
    version = draw.choice(task.versions)
    of = draw.choice((task.name, f"{task.name}@{version[:8]}", task.name.upper()))
    kinds = (
        (f"/v1/tasks/{ours}/alias", "PUT", {"of": of}),
        (f"/v1/tasks/{draw.choice(own.tasks).name}/rollback", "POST", {"version": version}),
        (f"/v1/tasks/{ours}/rollback", "POST", {"version": version[:8]}),
    )
    path, method, body = draw.choice(kinds)
    return Request(method, path, json.dumps(body).encode(), _JSON)


def _listing(draw: random.Random, own: Tenant, other: Tenant) -> Request:
    task = draw.choice(other.tasks)
    secret = draw.choice((*task.words, task.name, other.space, task.versions[0][:12]))
    search = draw.choice((secret, secret[:4], secret.upper(), _fullwidth(secret, draw), "%", "_"))
    query: list[tuple[str, str | int]] = [("limit", draw.choice((1, 2, 100, 1000)))]
    for one in (("search", search), ("tag", draw.choice((task.tag, "shared", task.tag.upper())))):
        if draw.random() < 0.5:
            query.append(one)
    if draw.random() < 0.4:
        query.append(
            ("cursor", _cursor(draw.choice((task.name, other.space + "a", "a", own.space))))
        )
    return Request("GET", f"/v1/tasks?{urlencode(query)}")


def _asking(draw: random.Random, own: Tenant, other: Tenant) -> Request:
    """Classify or embed by tasks of both, selected in all ways."""
    task, ours = draw.choice(other.tasks), draw.choice(own.tasks)
    choices = [
        ("task", "*"),
        ("tag", "shared"),
        ("tag", task.tag),
        ("tag", ours.tag),
        ("task", ours.name),
        ("task", f"{ours.name}@{draw.choice(task.versions)[:8]}"),
        ("task", _spelled(draw, own, other)),
        ("top_tasks", "3"),
        ("top_k", "2"),
    ]
    query = urlencode(draw.sample(choices, draw.randint(1, 4)))
    headers = dict(_PNG)
    if draw.random() < 0.3:
        headers["accept"] = "application/x-ndjson"
    return Request("POST", f"/v1/{draw.choice(('classify', 'embed'))}?{query}", _picture(), headers)


def _scoring(draw: random.Random, own: Tenant, other: Tenant) -> Request:
    body = {
        "embeddings": [[1.0] * draw.choice((2, 128, 256, 512))],
        "tasks": draw.sample([draw.choice(own.tasks).name, _spelled(draw, own, other), "*"], 2),
    }
    return Request("POST", "/v1/score", json.dumps(body).encode(), _JSON)


def _creating(draw: random.Random, own: Tenant, other: Tenant) -> Request:
    name = _spelled(draw, own, other)
    body = {"name": name, "class_names": ["a", "b"], "tags": [draw.choice(other.tasks).tag]}
    return Request("POST", "/v1/tasks", json.dumps(body).encode(), _JSON)


def _archive(draw: random.Random, own: Tenant, other: Tenant) -> Request:
    """Upload or import a zip with names of theirs among ours."""
    names = [draw.choice(other.tasks).name, f"{own.space}{word(draw)}", _spelled(draw, own, other)]
    draw.shuffle(names)
    if draw.random() < 0.5:
        version = draw.choice(draw.choice(other.tasks).versions)
        tasks = [{"name": name, "version": version, "updated": ""} for name in names]
        index = json.dumps({"format": 1, "tool_version": "1", "tasks": tasks})
        content = zipped({"registry.json": index.encode(), f"versions/{version}.safetensors": b"x"})
        return Request("POST", "/v1/registry/import", content, _ZIP)
    query = {
        "atomic": draw.choice(("true", "false")),
        "namespace": draw.choice(("", other.space.rstrip("/-."), "..", own.space.rstrip("/"))),
        "tag": draw.choice((other.tasks[0].tag, "shared")),
    }
    files = {f"{name.replace('/', '_')}.safetensors": b"no prompt file" for name in names}
    return Request("PUT", f"/v1/tasks?{urlencode(query)}", zipped(files), _ZIP)


def _others(draw: random.Random, own: Tenant, other: Tenant) -> Request:
    task = draw.choice(other.tasks)
    version = draw.choice(task.versions)[: draw.choice((8, 64))]
    paths = (
        f"/v1/audit?{urlencode({'subject': task.name})}",
        f"/v1/audit?before={draw.randint(1, 500)}&limit=1000",
        "/v1/audit?action=task.put&limit=1000",
        "/v1/audit?action=key.create",
        "/v1/info",
        "/metrics",
        "/v1/registry/export",
        f"/v1/versions/{version}",
        "/v1/openapi.json",
        "/docs.json",
        "/schema.json",
        f"/bentoml/v1/tasks/{task.name}",
        f"//v1/tasks/{task.name}",
        f"/v1/./tasks/{task.name}",
        f"/v1/docs/../tasks/{task.name}",
    )
    path = draw.choice(paths)
    return Request("DELETE" if "/versions/" in path else draw.choice(("GET", "GET", "HEAD")), path)


_DRAWINGS: tuple[Drawing, ...] = (
    *(_a_task, _a_task, _a_task, _own_task, _listing, _listing, _asking, _asking),
    *(_scoring, _creating, _archive, _others, _others),
)


def _cursor(last: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps([last]).encode()).decode().rstrip("=")


KINDS: Mapping[str, Kind] = {
    "tenants": Kind("one tenant about the tasks of another", attack, keyed=True),
}
