"""Tenants of an attack: their tasks are full of words that nobody else may ever be sent."""

import io
import json
import random
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from unicodedata import combining
from urllib.parse import unquote_plus

import httpx

from drills.attacks.kind import Target
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.service.permissions import Permissions, Quota

ALL_ACTIONS = ("read", "classify", "upload", "admin")
_RARE = "bcdfghjkmpqvwxz"  # words of these letters occur in no text by chance


def word(draw: random.Random, length: int = 10) -> str:
    """Return a word that occurs nowhere else."""
    return "".join(draw.choice(_RARE) for _ in range(length))


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a key."""
    return {"authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class Task:
    """Task of a tenant: its name and versions, and the words that are in it."""

    name: str
    tag: str
    versions: tuple[str, ...]
    words: tuple[str, ...]  # of the name, the tag, classes, templates and metrics


@dataclass(frozen=True)
class Tenant:
    """Tenant: the beginning of its names, its tasks, and headers with its credentials."""

    space: str
    owner: Mapping[str, str]
    tasks: tuple[Task, ...] = ()
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def secrets(self) -> set[str]:
        """Everything that no other tenant may be sent."""
        words = {one for task in self.tasks for one in task.words}
        return words | {version[:12] for task in self.tasks for version in task.versions}

    def twin(self, draw: random.Random) -> "Tenant":
        """Return a tenant with tasks of other names that do not exist, as long as these."""
        return replace(self, tasks=tuple(_twin(task, draw) for task in self.tasks))


def _twin(task: Task, draw: random.Random) -> Task:
    other = {one: word(draw, len(one)) for one in task.words}
    name, tag = task.name, task.tag
    for one, replaced in other.items():
        name, tag = name.replace(one, replaced), tag.replace(one, replaced)
    versions = tuple(f"{draw.getrandbits(256):064x}" for _ in task.versions)
    return Task(name, tag, versions, tuple(other.values()))


async def make_tenant(
    target: Target, draw: random.Random, space: str, *, n_tasks: int = 3
) -> Tenant:
    """Create the key of a tenant and its tasks, each in two versions."""
    with target.keys() as keys:
        token, _ = keys.create(word(draw), Permissions.checked(ALL_ACTIONS, [f"{space}*"]))
    tenant = Tenant(space, bearer(token))
    tasks = [await _make_task(target, draw, tenant) for _ in range(n_tasks)]
    return replace(tenant, tasks=tuple(tasks))


async def _make_task(target: Target, draw: random.Random, tenant: Tenant) -> Task:
    secret = {kind: word(draw) for kind in ("name", "tag", "first", "second", "template", "metric")}
    name, tag = tenant.space + secret["name"], secret["tag"]
    versions = []
    for of_class in ("first", "second"):
        body = {
            "name": name,
            "class_names": [secret[of_class], "other"],
            "templates": ["a photo of a {}.", f"a {secret['template']} of a {{}}."],
            "tags": ["shared", tag],
        }
        await change(target, tenant, "POST", "/v1/tasks", json.dumps(body).encode())
        file = await target.ask("GET", f"/v1/tasks/{name}/file", name="file", headers=tenant.owner)
        prompt: Prompt = from_bytes(file.content)
        data = to_bytes(replace(prompt, metrics={"note": secret["metric"]}))
        answer = await change(target, tenant, "PUT", f"/v1/tasks/{name}", data)
        versions.append(answer.json()["version"])
    return Task(name, tag, tuple(versions), tuple(secret.values()))


async def change(
    target: Target, tenant: Tenant, method: str, path: str, content: bytes
) -> httpx.Response:
    """Change what is the tenant's own, as it may."""
    kind = "application/json" if content.startswith(b"{") else "application/octet-stream"
    answer = await target.ask(
        method, path, name="own", content=content, headers={**tenant.owner, "content-type": kind}
    )
    return answer.raise_for_status()


def credentials(
    target: Target, draw: random.Random, tenant: Tenant, count: int
) -> dict[str, Mapping[str, str]]:
    """Create keys that are limited to what a tenant has, in all ways that there are."""
    found: dict[str, Mapping[str, str]] = {"owner": tenant.owner}
    with target.keys() as keys:
        for _ in range(count):
            actions = draw.sample(ALL_ACTIONS, draw.randint(1, 4))
            names: list[str] = [f"{tenant.space}*"]
            tags: list[str] = []
            if draw.random() < 0.3:
                names = [task.name for task in draw.sample(tenant.tasks, 2)]
            if not {"upload", "admin"} & set(actions) and draw.random() < 0.6:
                tags = [draw.choice(tenant.tasks).tag]
                names = draw.choice(([], names))
            limits = {
                name: draw.randint(500, 1000)
                for name in ("requests_per_s", "images_per_s", "concurrency", "tasks")
                if draw.random() < 0.3
            }
            allowed = Permissions.checked(actions, names, tags)
            token, _ = keys.create(word(draw), allowed, quota=Quota(**limits))
            headers = draw.choice((bearer(token), bearer(token), {"x-api-key": token}))
            found[f"key for {'+'.join(actions)} of {names} {tags}"] = headers
    return found


def leaked(answer: httpx.Response, sent: str, secrets: Iterable[str]) -> list[str]:
    """Return the secrets in an answer that were not in its request.

    Args:
        answer: its status, headers and body; a zip is unpacked.
        sent: the request as text.
        secrets: of others.
    """
    headers = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
    text = _readable(headers + "\n" + _text_of(answer.content))
    asked = _readable(sent)
    return [secret for secret in secrets if secret in text and secret not in asked]


def _readable(text: str) -> str:
    return (text + unquote_plus(unquote_plus(text))).lower()


def _text_of(content: bytes) -> str:
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content += b"".join(name.encode() + archive.read(name) for name in archive.namelist())
    return content.decode("latin-1")


_VOLATILE = frozenset(
    {"date", "x-request-id", "server-timing", "ratelimit", "retry-after", "content-length"}
)
_REQUEST_ID = re.compile(r'"request_id":"[^"]*"|"revision":\d+|,"id":\d+')


def shape(answer: httpx.Response, words: Mapping[str, str]) -> str:
    """Return an answer without what differs anyway, and with some words replaced by others."""
    headers = sorted(
        f"{name}: {value}" for name, value in answer.headers.items() if name not in _VOLATILE
    )
    text = "\n".join([str(answer.status_code), *headers, _REQUEST_ID.sub("", answer.text)])
    text = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not combining(c))
    for one, replaced in words.items():
        text = text.replace(one.lower(), replaced.lower())
    return text
