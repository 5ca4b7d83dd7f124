"""Attacks by requests: every route with every method and content type, and generated faults."""

import random

from hypothesis import given, seed
from hypothesis.strategies import one_of

from drills.attacks.kind import Kind, Target, together
from tests.service.contract.faults import KINDS as FAULTS
from tests.service.contract.faults import TASK, Call
from tests.service.contract.generated import seeded

_METHODS = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND",
    "QUERY", "get", "X",
)  # fmt: skip
_OTHER_PATHS = (
    "/", "/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json", "/bentoml/",
    "/classify", "/assets/a",
    "/static_content/a", "/v1", "/v1/", "/v1/ui", "/v1/ui/ui.js", "/v1/docs", "/v1/openapi.json",
    "/v1/none", "/v2", "//v1/info",
    "/v1//info", "/v1/./info", "/v1/../metrics", "/V1/info", "/v1/info/", "/v1/tasks/",
    "/v1/classify/", "/v1%2Finfo", "/v1/tasks/a%2Fb",
)  # fmt: skip
_TYPES = (
    "", "application/json", "image/png", "image/*", "multipart/form-data",
    "multipart/form-data; boundary=b",
    "application/octet-stream", "application/x-npy", "application/x-safetensors", "application/zip",
    "text/plain",
    "application/x-www-form-urlencoded", "application/xml", "application/JSON; charset=latin-1",
    "a", "/", ";", "\xff", "text/html",
)  # fmt: skip
_BODIES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"a=b",
    b"--b\r\n\r\n--b--",
    b"PK\x05\x06" + bytes(18),
    bytes(100),
    b"\x93NUMPY\x01\0",
)
_ACCEPTS = (
    "*/*",
    "application/json",
    "application/x-ndjson",
    "text/html",
    "image/png",
    "",
    "application/x-npy;q=0",
)


async def _everything(target: Target, draws: random.Random, count: int) -> None:
    """Send every method to every path with every content type, drawn at random."""
    document = (await target.ask("GET", "/v1/openapi.json", name="openapi")).json()
    paths = [f"/v1{path}" for path in document["paths"]] + list(_OTHER_PATHS)

    def drawn() -> Call:
        path = draws.choice(paths)
        for parameter in ("{name}", "{version}", "{task}", "{file}"):
            path = path.replace(
                parameter, draws.choice(("generated", "drill-none", "a" * 200, "%00"))
            )
        headers = {"content-type": draws.choice(_TYPES), "accept": draws.choice(_ACCEPTS)}
        if draws.random() < 0.1:
            headers |= {"x-http-method-override": "DELETE", "content-encoding": "gzip"}
        return Call(draws.choice(_METHODS), path, draws.choice(_BODIES), headers)

    await together(_send(target, drawn()) for _ in range(count))


async def _faults(target: Target, draws: random.Random, count: int) -> None:
    """Send requests with faults of every kind, as hypothesis draws them."""
    task = b'{"name": "%s", "class_names": ["cat", "dog"]}' % TASK.encode()
    kind = {"content-type": "application/json"}
    await target.ask("POST", "/v1/tasks", name="a task", content=task, headers=kind)
    calls = await target.make(_drawn, draws.getrandbits(64), count)
    await together(_send(target, call) for call in calls)


def _drawn(number: int, count: int) -> list[Call]:
    calls: list[Call] = []

    @seed(number)
    @seeded(count)
    @given(one_of(*(make() for make in FAULTS.values())))
    def draw(call: Call) -> None:
        calls.append(call)

    draw()
    return calls


async def _send(target: Target, call: Call) -> None:
    answer = await target.ask(
        call.method,
        call.path,
        name=f"{dict(call.headers)} {call.content[:100]!r}",
        content=call.content,
        headers=call.headers,
    )
    if answer.status_code == 200 and b"Traceback (most recent" in answer.content:
        target.fault("leaked", f"a traceback in the answer to {call}")


KINDS = {
    "routes": Kind("every method, path and content type, drawn at random", _everything),
    "callers-faults": Kind("generated requests with faults of every kind", _faults),
}
