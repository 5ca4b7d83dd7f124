"""Quotas of tasks and stored bytes, in races of all changes that can use them up.

The keys of a tenant share its quota. What the database then holds is counted here, in SQL of its
own, after every round and while it runs.
"""

import asyncio
import contextlib
import io
import json
import random
import sqlite3
import zipfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from drills.attacks.kind import Kind, Target
from drills.attacks.tenancy import ALL_ACTIONS, bearer, word
from drills.stand import Stand
from prompt_serve.service.permissions import Permissions, Quota

_AT_ONCE = 12  # changes of a round
_FILE_BYTES = 700  # of a prompt file without learned numbers, about
_JSON = {"content-type": "application/json"}
_ZIP = {"content-type": "application/zip"}
_OCTETS = {"content-type": "application/octet-stream"}


@dataclass(frozen=True)
class Limited:
    """Tenant with a quota, the keys that share it, and a prompt file to upload."""

    space: str
    tokens: Sequence[str]
    quota: Quota
    file: bytes


Change = Callable[[Target, random.Random, Limited, str], Awaitable[object]]


async def attack(target: Target, draw: random.Random, count: int) -> None:
    """Let tenants use up their quotas in rounds of concurrent changes."""
    for _ in range(max(1, count // _AT_ONCE)):
        await _round(target, draw)


async def _round(target: Target, draw: random.Random) -> None:
    space = f"{word(draw, 8)}-"
    quota = Quota(
        tasks=draw.choice((None, 1, 2, 3, 5)),
        stored_bytes=draw.choice((None, *(n * _FILE_BYTES for n in (2, 3, 5, 8)))),
    )
    with target.keys() as keys:
        name = word(draw)
        allowed = Permissions.checked(ALL_ACTIONS, [f"{space}*"])
        tokens = [keys.create(name, allowed, quota=quota)[0]]
        tokens += [keys.rotate(name, timedelta(hours=1))[0] for _ in range(draw.randint(0, 2))]
    operator = bearer(target.admin_key)
    made = await target.ask(
        "POST", "/v1/tasks", name="file", headers={**operator, **_JSON}, content=_body(word(draw))
    )
    path = f"/v1/tasks/{made.json()['name']}"
    file = (await target.ask("GET", f"{path}/file", name="file", headers=operator)).content
    limited = Limited(space, tokens, quota, file)
    names = [f"{space}{word(draw, 4)}" for _ in range(draw.randint(3, _AT_ONCE))]
    changes = [
        draw.choice(_CHANGES)(target, random.Random(draw.random()), limited, draw.choice(names))
        for _ in range(_AT_ONCE)
    ]
    running = asyncio.gather(*changes)
    while not running.done():
        check_quota(target, limited)
        await asyncio.sleep(0.02)
    await running
    check_quota(target, limited)
    await target.ask("DELETE", path, name="file", headers=operator)


def check_quota(target: Target, limited: Limited) -> None:
    """Count a fault if the tenant has more than its quota."""
    tasks, size_bytes = stored(target.stand, limited.space)
    for name, found, limit in (
        ("tasks", tasks, limited.quota.tasks),
        ("stored bytes", size_bytes, limited.quota.stored_bytes),
    ):
        if limit is not None and found > limit:
            target.fault("wrong", f"{found} {name} of {limited.space}*, with a quota of {limit}")


def stored(stand: Stand, space: str) -> tuple[int, int]:
    """Return the number of tasks whose names begin so, and the bytes of all that is kept of them,
    at one moment."""
    uri = f"{(stand.home / 'registry.db').as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30)) as database:
        tasks, size_bytes = database.execute(
            "SELECT (SELECT count(*) FROM task WHERE name GLOB :names), "
            "(SELECT coalesce(sum(size_bytes), 0) FROM prompt_file WHERE version IN "
            "(SELECT version FROM kept_version WHERE name GLOB :names))",
            {"names": f"{space}*"},
        ).fetchone()
    return int(tasks), int(size_bytes)


def _body(name: str, classes: int = 2) -> bytes:
    return json.dumps(
        {"name": name, "class_names": [f"{name} {c}" for c in range(classes)]}
    ).encode()


def _key(draw: random.Random, limited: Limited) -> dict[str, str]:
    return bearer(draw.choice(limited.tokens))


async def _send(
    target: Target,
    draw: random.Random,
    limited: Limited,
    request: str,
    content: bytes,
    kind: dict[str, str],
) -> None:
    method, _, path = request.partition(" ")
    headers = {**_key(draw, limited), **kind}
    await target.ask(method, path, name="quota", content=content, headers=headers)


async def _create(target: Target, draw: random.Random, limited: Limited, name: str) -> None:
    body = _body(name, draw.choice((2, 2, 20)))
    await _send(target, draw, limited, "POST /v1/tasks", body, _JSON)


async def _upload(target: Target, draw: random.Random, limited: Limited, name: str) -> None:
    await _send(target, draw, limited, f"PUT /v1/tasks/{name}", limited.file, _OCTETS)


async def _alias(target: Target, draw: random.Random, limited: Limited, name: str) -> None:
    await _upload(target, draw, limited, name)
    for _ in range(3):
        body = json.dumps({"of": name}).encode()
        other = f"{limited.space}{word(draw, 4)}"
        await _send(target, draw, limited, f"PUT /v1/tasks/{other}/alias", body, _JSON)


async def _delete_and_restore(
    target: Target, draw: random.Random, limited: Limited, name: str
) -> None:
    await _create(target, draw, limited, name)
    for request in (f"DELETE /v1/tasks/{name}", f"POST /v1/tasks/{name}/rollback"):
        await _send(target, draw, limited, request, b"", {})


async def _upload_zip(target: Target, draw: random.Random, limited: Limited, name: str) -> None:
    count = draw.randint(1, 6)
    names = [f"{limited.space}{word(draw, 4)}" for _ in range(count)]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for one in (name, *names):
            archive.writestr(f"{one}.safetensors", limited.file)
    query = f"atomic={draw.choice(('true', 'false'))}"
    await _send(target, draw, limited, f"PUT /v1/tasks?{query}", file.getvalue(), _ZIP)


async def _export_and_import(
    target: Target, draw: random.Random, limited: Limited, name: str
) -> None:
    await _create(target, draw, limited, name)
    key = _key(draw, limited)
    export = await target.ask("GET", "/v1/registry/export", name="quota", headers=key)
    await _send(target, draw, limited, f"DELETE /v1/tasks/{name}", b"", {})
    await _send(target, draw, limited, "POST /v1/registry/import", export.content, _ZIP)


_CHANGES: tuple[Change, ...] = (
    _create, _create, _upload, _alias, _delete_and_restore, _upload_zip, _export_and_import,
)  # fmt: skip

KINDS: Mapping[str, Kind] = {
    "quotas": Kind("changes in a race for the last of a quota", attack, keyed=True),
}
