"""Two tenants of one service: neither sees nor changes what the other has."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from prompt_serve.errors import RequestInvalid
from prompt_serve.service.http.app import create_app
from prompt_serve.service.permissions import Permissions
from tests.service.contract.documents import operations
from tests.service.prompts import picture
from tests.service.secured_service import SecuredService, open_keys

pytestmark = pytest.mark.serve
PNG = {"content-type": "image/png"}
ZIP = {"content-type": "application/zip"}
EVERY_ACTION = ("read", "classify", "upload", "admin")
OPERATIONS = {
    operation["operationId"]: (method.upper(), f"/v1{path}")
    for method, path, operation in operations(create_app().openapi())
}
OF_A_TASK = sorted(name for name, (_, path) in OPERATIONS.items() if "{name}" in path)
BODIES: dict[str, dict[str, Any]] = {
    "upload_task": {"content": b"no prompt file"},
    "roll_back_task": {},
    "alias_task": {"json": {"of": "ours-pets"}},
    "set_tags": {"json": {"tags": ["taken"]}},
    "edit_tags": {"json": {"add": ["taken"]}},
    "set_pinned": {"json": {"pinned": True}},
}


@dataclass(frozen=True)
class Tenants:
    """Clients of two tenants with the same actions, and of the operator."""

    ours: httpx.Client
    theirs: httpx.Client
    operator: httpx.Client

    def state_of_theirs(self) -> list[Any]:
        """Return all that the operator sees of their task."""
        paths = ("/v1/tasks/theirs-pets", "/v1/tasks/theirs-pets/history", "/v1/tasks/theirs-new")
        audit = self.operator.get("/v1/audit", params={"subject": "theirs-pets"})
        return [audit.json(), *(self.operator.get(path).text[:2000] for path in paths[:2])]


@pytest.fixture(scope="module")
def tenants(secured: SecuredService) -> Iterator[Tenants]:
    with open_keys(secured.served.home) as keys:
        ours, theirs = (
            keys.create(f"tenant-{name}", Permissions.checked(EVERY_ACTION, [f"{name}-*"]))[0]
            for name in ("ours", "theirs")
        )
    with (
        secured.client(ours) as first,
        secured.client(theirs) as second,
        secured.client(secured.admin) as operator,
    ):
        for name, client in (("ours", first), ("theirs", second)):
            body = {"name": f"{name}-pets", "class_names": [f"{name} cat", "dog"]}
            client.post("/v1/tasks", json={**body, "tags": ["shared", name]}).raise_for_status()
        yield Tenants(first, second, operator)
        for name in ("ours", "theirs"):
            operator.delete(f"/v1/tasks/{name}-pets")


def send(client: httpx.Client, operation: str, name: str) -> httpx.Response:
    method, path = OPERATIONS[operation]
    return client.request(method, path.replace("{name}", name), **BODIES.get(operation, {}))


@pytest.mark.parametrize("operation", OF_A_TASK)
def test_a_task_of_others_answers_as_one_that_does_not_exist(
    tenants: Tenants, operation: str
) -> None:
    before = tenants.state_of_theirs()
    theirs = send(tenants.ours, operation, "theirs-pets")
    missing = send(tenants.ours, operation, "theirs-none")

    assert theirs.status_code == missing.status_code
    assert theirs.status_code in (403, 404), theirs.text
    found, expected = (
        re.sub("pets|none", "", answer.json()["detail"]) for answer in (theirs, missing)
    )
    assert found == expected
    assert tenants.state_of_theirs() == before


def test_own_tasks_are_listed_read_and_changed(tenants: Tenants) -> None:
    for operation in OF_A_TASK:
        if operation not in ("upload_task", "delete_task", "roll_back_task"):
            answer = send(tenants.theirs, operation, "theirs-pets").status_code
            # The body of an alias names a task of the other tenant.
            assert answer == (404 if operation == "alias_task" else 200), operation
    tenants.theirs.put("/v1/tasks/theirs-pets/tags", json={"tags": ["shared", "theirs"]})


def zip_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return file.getvalue()


def _ask(path: str, **query: Any) -> Callable[[Tenants], httpx.Response]:
    return lambda tenants: tenants.ours.post(path, params=query, content=picture(), headers=PNG)


def _score(**query: Any) -> Callable[[Tenants], httpx.Response]:
    def send(tenants: Tenants) -> httpx.Response:
        embedded = tenants.ours.post("/v1/embed", content=picture(), headers=PNG).json()
        rows = [embedded["results"][0]["embedding"]]
        return tenants.ours.post("/v1/score", params=query, json={"embeddings": rows})

    return send


def _bulk(name: str, **query: str) -> Callable[[Tenants], httpx.Response]:
    def send(tenants: Tenants) -> httpx.Response:
        data = tenants.ours.get("/v1/tasks/ours-pets/file").content
        body = zip_of({f"{name}.safetensors": data})
        return tenants.ours.put("/v1/tasks", params=query, content=body, headers=ZIP)

    return send


def _import(tenants: Tenants) -> httpx.Response:
    body = tenants.operator.get("/v1/registry/export").content
    return tenants.ours.post("/v1/registry/import", content=body, headers=ZIP)


def _create(tenants: Tenants) -> httpx.Response:
    body = {"name": "theirs-new", "class_names": ["a", "b"]}
    return tenants.ours.post("/v1/tasks", json=body)


def _get(path: str, **query: Any) -> Callable[[Tenants], httpx.Response]:
    return lambda tenants: tenants.ours.get(path, params=query)


def _delete_version(tenants: Tenants) -> httpx.Response:
    version = tenants.theirs.get("/v1/tasks/theirs-pets").json()["version"]
    return tenants.ours.delete(f"/v1/versions/{version}")


# Of each route without a name: requests, and whether they succeed for what is ours.
OTHERS: dict[str, list[tuple[Callable[[Tenants], httpx.Response], bool]]] = {
    "info": [(_get("/v1/info"), True)],
    "audit": [(_get("/v1/audit"), True), (_get("/v1/audit", subject="theirs-pets"), True)],
    "list_tasks": [
        (_get("/v1/tasks"), True),
        (_get("/v1/tasks", search="theirs"), True),
        (_get("/v1/tasks", tag="shared"), True),
        (_get("/v1/tasks", tag="theirs"), True),
    ],
    "classify": [
        (_ask("/v1/classify", task="*"), True),
        (_ask("/v1/classify", tag="shared"), True),
        (_ask("/v1/classify", task="*", top_tasks=5), True),
        (_ask("/v1/classify", tag="theirs"), False),
        (_ask("/v1/classify", task="theirs-pets"), False),
        (_ask("/v1/classify", task="theirs-pet"), False),
        (_ask("/v1/classify", task=["ours-pets", "theirs-pets"]), False),
    ],
    "embed": [
        (_ask("/v1/embed", task="ours-pets"), True),
        (_ask("/v1/embed", task="theirs-pets"), False),
    ],
    "score": [
        (_score(task="*"), True),
        (_score(tag="shared"), True),
        (_score(task="theirs-pets"), False),
        (_score(tag="theirs"), False),
    ],
    "add_zero_shot_task": [(_create, False)],
    "upload_tasks": [
        (_bulk("theirs-pets"), False),
        (_bulk("theirs-new"), False),
        (_bulk("ours-more"), True),
    ],
    "import_registry": [(_import, False)],
    "export_registry": [(_get("/v1/registry/export"), True)],
    "delete_version": [(_delete_version, False)],
}  # fmt: skip


def test_every_route_is_tried() -> None:
    assert {*OF_A_TASK, *OTHERS} == OPERATIONS.keys()


@pytest.mark.parametrize("operation", sorted(OTHERS))
def test_no_route_tells_of_the_others_or_changes_them(tenants: Tenants, operation: str) -> None:
    before = tenants.state_of_theirs()
    for request, succeeds in OTHERS[operation]:
        answer = request(tenants)
        assert answer.is_success == succeeds, answer.text
        if succeeds:
            assert b"theirs" not in _content(answer)
        else:
            # What the request named may be repeated; a hint may name only what is ours.
            assert answer.status_code in (403, 404, 422)
            assert b"theirs cat" not in answer.content
            assert "Did you mean" not in answer.text
    assert tenants.state_of_theirs() == before
    assert tenants.operator.get("/v1/tasks/theirs-new").status_code == 404
    tenants.operator.delete("/v1/tasks/ours-more")


def _content(answer: httpx.Response) -> bytes:
    if answer.headers["content-type"] != "application/zip":
        return answer.content
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return b"".join(
            [*map(archive.read, archive.namelist()), *map(str.encode, archive.namelist())]
        )


def test_the_number_of_tasks_is_that_of_ours(tenants: Tenants) -> None:
    listed = tenants.ours.get("/v1/tasks").json()["tasks"]
    assert tenants.ours.get("/v1/info").json()["tasks"] == len(listed) == 1
    assert tenants.operator.get("/v1/info").json()["tasks"] > 1
    assert tenants.ours.get("/metrics").status_code == 403  # which count those of all


def test_lines_of_any_number_of_tasks_are_of_ours(tenants: Tenants) -> None:
    headers = {**PNG, "accept": "application/x-ndjson"}
    answer = tenants.ours.post("/v1/classify?task=*", content=picture(), headers=headers)
    lines = list(map(json.loads, answer.text.splitlines()))
    assert "ours-pets" in answer.text
    assert "theirs" not in answer.text
    assert lines[-1]["tasks"] == 1


def test_a_change_that_another_caller_made_known_stays_hidden(tenants: Tenants) -> None:
    """Versions of names are remembered between requests, of each caller on its own."""
    for client, status in ((tenants.theirs, 200), (tenants.ours, 404), (tenants.theirs, 200)):
        answer = client.post("/v1/classify?task=theirs-pets", content=picture(), headers=PNG)
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("names", "tags", "visible"),
    [
        (["scope-a"], [], {"scope-a"}),
        (["scope-a", "scope-b"], [], {"scope-a", "scope-b"}),
        (["scope-a*"], [], {"scope-a", "scope-aa"}),
        (["SCOPE-*"], [], {"SCOPE-A"}),
        (["scope_a*"], [], set()),
        ([], ["first"], {"scope-a", "SCOPE-A"}),
        (["scope-b"], ["first"], {"scope-a", "scope-b", "SCOPE-A"}),
        ([], ["fir"], set()),
    ],
)
def test_which_tasks_a_key_sees(
    secured: SecuredService, names: list[str], tags: list[str], visible: set[str]
) -> None:
    all_names = {"scope-a": ["first"], "scope-aa": ["second"], "scope-b": [], "SCOPE-A": ["first"]}
    with open_keys(secured.served.home) as keys:
        token, key = keys.create("reader", Permissions.checked(["read", "classify"], names, tags))
    with secured.client(secured.admin) as operator:
        for name, given in all_names.items():
            body = {"name": name, "class_names": ["a", "b"], "tags": given}
            operator.post("/v1/tasks", json=body).raise_for_status()
    with secured.client(token) as http:
        found = {task["name"] for task in http.get("/v1/tasks").json()["tasks"]}
        read = {name for name in all_names if http.get(f"/v1/tasks/{name}").is_success}
        asked = {
            name
            for name in all_names
            if http.post(f"/v1/classify?task={name}", content=picture(), headers=PNG).is_success
        }
        refused = http.delete("/v1/tasks/scope-a")
    with open_keys(secured.served.home) as keys:
        keys.revoke(key.id)

    assert found == read == asked == visible
    assert refused.status_code == 403
    assert refused.json()["action"] == "upload"


@pytest.mark.parametrize(
    ("names", "tags", "counts"),
    [
        ([], [], True),
        (["ours-*"], [], False),
        (["ours-pets"], [], False),
        (["theirs-pets", "theirs-x*"], [], False),
        ([], ["shared"], False),
        (["ours-*"], ["theirs"], False),
    ],
)
def test_the_revision_counts_changes_for_those_who_see_them_all(
    tenants: Tenants, secured: SecuredService, names: list[str], tags: list[str], counts: bool
) -> None:
    with open_keys(secured.served.home) as keys:
        token, key = keys.create("reader", Permissions.checked(["read"], names, tags))
    with secured.client(token) as http:
        seen = []
        for label in ("one", "two"):
            change = {"tags": ["shared", "theirs", label]}
            tenants.theirs.put("/v1/tasks/theirs-pets/tags", json=change).raise_for_status()
            seen.append({http.get(path).json()["revision"] for path in ("/v1/tasks", "/v1/info")})
    with open_keys(secured.served.home) as keys:
        keys.revoke(key.id)
    tenants.theirs.put("/v1/tasks/theirs-pets/tags", json={"tags": ["shared", "theirs"]})

    first, second = seen
    assert len(first) == len(second) == 1
    assert min(second) > min(first) > 0 if counts else first == second == {0}


@pytest.mark.parametrize("action", EVERY_ACTION)
def test_a_key_of_one_action_may_do_nothing_else(secured: SecuredService, action: str) -> None:
    with open_keys(secured.served.home) as keys:
        token, key = keys.create("single", Permissions.checked([action]))
    requests = {
        "read": ("GET", "/v1/tasks/none"),
        "classify": ("POST", "/v1/classify"),
        "upload": ("DELETE", "/v1/tasks/none"),
        "admin": ("GET", "/v1/audit"),
    }
    with secured.client(token) as http:
        allowed = {
            needed
            for needed, request in requests.items()
            if http.request(*request).status_code not in (401, 403)
        }
        assert http.get("/v1/info").status_code == 200
    with open_keys(secured.served.home) as keys:
        keys.revoke(key.id)
    assert allowed == {action}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["write"], [], []), "'write' is not an action"),
        (([], [], []), "There is no action"),
        ((["read"], ["a b"], []), "'a b' is not the name of a task"),
        ((["read"], ["*a"], []), r"'\*a' is not the name"),
        ((["read"], ["a**"], []), "is not the name"),
        ((["read"], [], ["a b"]), "'a b' is not a tag"),
        ((["read", "upload"], [], ["a"]), "may only read and classify"),
        ((["admin"], ["a*"], ["a"]), "may only read and classify"),
    ],
)
def test_permissions_that_make_no_sense_are_refused(
    given: tuple[list[str], list[str], list[str]], message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        Permissions.checked(*given)
