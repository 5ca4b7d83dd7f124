"""Requests that a web page of another origin can make a browser send, or a name that was made to
point at this machine.

Whatever such a request is, it must be refused or only read; no answer may be readable to the page.
"""

import base64
import json
import random
from collections.abc import Callable, Mapping
from functools import cache

import httpx

from drills.attacks.kind import Kind, Target
from drills.attacks.tenancy import bearer, word
from prompt_serve.service.http.app import create_app
from tests.service.prompts import picture

_TASK = "page-target"
_CHECK_EVERY = 50  # instances
_REFUSED = (400, 401, 403, 404, 405, 413, 415, 422, 431)
_METHODS = ("POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "QUERY")
_TYPES = (
    *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
    *("application/json", "application/json; charset=utf-8", "text/plain; application/json"),
    *("application/octet-stream", "application/zip", "image/png", "", "TEXT/PLAIN", "*/*"),
)
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "LOCALHOST", "127.0.0.53")


async def attack(target: Target, draw: random.Random, count: int) -> None:
    """Send what pages can, to a service without keys."""
    await _attack(target, draw, count, lambda: {})


async def attack_with_password(target: Target, draw: random.Random, count: int) -> None:
    """The same where the browser remembers a key as a password, and sends it with each request."""
    password = base64.b64encode(f"key:{target.admin_key}".encode()).decode()
    cookies = {"cookie": f"key={target.admin_key}"}
    await _attack(
        target, draw, count, lambda: draw.choice(({"authorization": f"Basic {password}"}, cookies))
    )


async def _attack(
    target: Target, draw: random.Random, count: int, remembered: Callable[[], dict[str, str]]
) -> None:
    body = {"name": _TASK, "class_names": ["a", "b"], "tags": ["kept"]}
    await _operate(target, "POST", "/v1/tasks", json.dumps(body).encode())
    before = await _state(target)
    for n in range(count):
        kind = draw.random()
        make = _preflight if kind < 0.15 else _read if kind < 0.25 else _write
        await make(target, draw, remembered())
        if n % _CHECK_EVERY == _CHECK_EVERY - 1 or n == count - 1:
            await _compare(target, before)


async def _write(target: Target, draw: random.Random, remembered: Mapping[str, str]) -> None:
    method, path = draw.choice(_changes())
    if draw.random() < 0.1:
        method = draw.choice(_METHODS)
    path = draw.choice((path, path, path, f"{path}/", f"/{path}", path.replace("/v1", "/V1")))
    kind = draw.choice(_TYPES)
    headers = {**_foreign(draw, target, remembered), **({"content-type": kind} if kind else {})}
    answer = await target.ask(
        method, path, name="page", content=_content(draw, path), headers=_shuffled(draw, headers)
    )
    if answer.status_code not in _REFUSED and answer.status_code < 500:
        target.fault("wrong", f"{answer.status_code} to {method} {path} with {headers}")
    _check_unreadable(target, answer, headers)


async def _read(target: Target, draw: random.Random, remembered: Mapping[str, str]) -> None:
    """Read as a page does: it is answered, and the browser keeps the answer from the page."""
    path = draw.choice(("/v1/tasks", "/v1/info", f"/v1/tasks/{_TASK}", "/metrics", "/v1/audit"))
    headers = _foreign(draw, target, remembered)
    method = draw.choice(("GET", "HEAD"))
    answer = await target.ask(method, path, name="page", headers=_shuffled(draw, headers))
    _check_unreadable(target, answer, headers)
    is_rebound = "host" in headers and not _names_loopback(headers["host"])
    if is_rebound and answer.status_code == 200:
        target.fault("leaked", f"{method} {path} is answered to the host {headers['host']!r}")


async def _preflight(target: Target, draw: random.Random, remembered: Mapping[str, str]) -> None:
    """Ask as a browser does before it sends what a page may not; without a password."""
    _, path = draw.choice(_changes())
    headers = {
        **_foreign(draw, target, {}),
        "access-control-request-method": draw.choice(("POST", "PUT", "DELETE", "PATCH", "GET")),
        "access-control-request-headers": draw.choice(
            ("content-type", "authorization", "x-api-key,content-type", "x-any")
        ),
    }
    headers.setdefault("origin", "https://evil.example")
    if draw.random() < 0.5:
        headers["access-control-request-private-network"] = "true"
    answer = await target.ask("OPTIONS", path, name="preflight", headers=headers)
    _check_unreadable(target, answer, headers)


def _check_unreadable(target: Target, answer: httpx.Response, headers: Mapping[str, str]) -> None:
    """Count a fault if a browser would hand an answer to a page of another origin."""
    allowed = {
        name: answer.headers[name]
        for name in ("access-control-allow-origin", "access-control-allow-private-network")
        if name in answer.headers
    }
    if allowed:
        target.fault("leaked", f"{allowed} to {headers}")


def _foreign(draw: random.Random, target: Target, remembered: Mapping[str, str]) -> dict[str, str]:
    """Return headers of a browser for a page that is not the service's own.

    Args:
        draw: of the page.
        target: the service.
        remembered: headers that the browser adds; not for a name that points here since.
    """
    port = target.stand.port
    own = f"127.0.0.1:{port}"
    site = f"{word(draw, 6)}.example"
    origin = draw.choice(
        (
            f"https://{site}",
            f"http://{own}.{site}",
            f"http://localhost.{site}:{port}",
            f"http://localhost:{draw.randint(1, port - 1)}",
            f"http://127.0.0.1:{draw.randint(1, port - 1)}",
            f"http://{site}@{own}.{site}",
            f"http://127.0.0.{draw.randint(2, 254)}:{port}",
            "null",
            f"file://{own}",
            f"moz-extension://{own}",
            f"http://{own}:80",
            "http://",
        )
    )
    fetched = draw.choice(("cross-site", "same-site", "cross-site, same-origin", "CROSS-SITE"))
    kinds: tuple[dict[str, str], ...] = (
        {"origin": origin},
        {"sec-fetch-site": fetched},
        {"origin": origin, "sec-fetch-site": fetched},
        {"origin": f"http://{own}", "sec-fetch-site": fetched},
    )
    headers = draw.choice(kinds) | dict(remembered)
    if not remembered and draw.random() < 0.2:
        headers = _rebound(draw, site, port)
    if draw.random() < 0.5:
        headers |= {"sec-fetch-mode": draw.choice(("no-cors", "cors", "navigate"))}
        headers |= {"referer": f"{origin}/page", "sec-fetch-dest": draw.choice(("empty", "iframe"))}
    return headers


def _rebound(draw: random.Random, site: str, port: int) -> dict[str, str]:
    """Return the headers for a foreign name that points here: to the browser it is one site."""
    host = draw.choice(
        (
            site,
            f"{site}:{port}",
            f"localhost.{site}",
            f"127.0.0.1.{site}:{port}",
            f"{site}:localhost",
            f"localhost@{site}",
            f"0.0.0.0:{port}",
            f"10.{draw.randrange(256)}.0.1",
            "169.254.169.254",
            "localhost.",
            f"127.0.0.1.:{port}",
            "0x7f.1",
            "2130706433",
            "[::2]",
            "[::ffff:10.0.0.1]",
        )
    )
    return {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}


def _names_loopback(host: str) -> bool:
    return host.rpartition(":")[0] in _LOOPBACK_NAMES or host in _LOOPBACK_NAMES


def _shuffled(draw: random.Random, headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers in another order and in other letters: their names have no case."""
    names = list(headers)
    draw.shuffle(names)
    return {draw.choice((name, name.title(), name.upper())): headers[name] for name in names}


@cache
def _changes() -> list[tuple[str, str]]:
    paths = create_app().openapi()["paths"]
    found = [
        (method.upper(), f"/v1{path}".replace("{name}", _TASK).replace("{version}", "0" * 64))
        for path, methods in paths.items()
        for method in methods
        if method != "get"
    ]
    return [*found, ("POST", "/classify"), ("POST", "/v1/ui"), ("POST", "/bentoml/classify")]


@cache
def _contents() -> dict[str, bytes]:
    task = {"name": "of-a-page", "class_names": ["a", "b"], "of": _TASK, "tags": ["taken"]}
    changes = {"pinned": True, "add": ["taken"], "remove": ["kept"]}
    form = f"--x\r\ncontent-disposition: form-data; name=task\r\n\r\n{_TASK}\r\n--x--"
    return {
        "task": json.dumps({**task, **changes}).encode(),
        "image": picture(),
        "form": form.encode(),
        "none": b"",
    }


def _content(draw: random.Random, path: str) -> bytes:
    kinds = ("image", "form", "none") if "classify" in path else ("task", "task", "none", "form")
    return _contents()[draw.choice(kinds)]


async def _operate(target: Target, method: str, path: str, content: bytes) -> httpx.Response:
    """Send a request of the operator, who is no page."""
    headers = {"content-type": "application/json"} if content else {}
    if target.admin_key:
        headers |= bearer(target.admin_key)
    return await target.ask(method, path, name="operator", content=content, headers=headers)


async def _state(target: Target) -> list[object]:
    """Return the task that pages attack, its history, and that there is none of theirs."""
    paths = (f"/v1/tasks/{_TASK}", f"/v1/tasks/{_TASK}/history", "/v1/tasks?search=of-a-page")
    answers = [(await _operate(target, "GET", path, b"")).json() for path in paths]
    return [*answers[:2], answers[2]["tasks"]]


async def _compare(target: Target, before: list[object]) -> None:
    after = await _state(target)
    if after != before:
        target.fault("wrong", f"a page changed {before} to {after}")


KINDS: Mapping[str, Kind] = {
    "pages": Kind("web pages of other origins, and names made to point here", attack),
    "passwords": Kind(
        "web pages, with a password that the browser remembers", attack_with_password, keyed=True
    ),
}
