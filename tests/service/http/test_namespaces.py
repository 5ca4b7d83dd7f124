"""Tasks named NAMESPACE/NAME, over HTTP and with the client and the commands."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from click.testing import CliRunner

from prompt_serve.cli.main import main
from prompt_serve.client import Client
from prompt_serve.errors import TaskNameInvalid
from prompt_serve.schemas import RESERVED_NAMES, TASK_NAME_PATTERN
from prompt_serve.service.http.app import create_app
from prompt_serve.service.storage.preconditions import is_task_name
from tests.service.process import Served
from tests.service.prompts import picture

PNG = {"content-type": "image/png"}
CLASSES = {"class_names": ["a", "b"]}


def test_every_route_below_a_name_is_reserved() -> None:
    paths = create_app().openapi()["paths"]
    below = {path.rpartition("/")[2] for path in paths if "{name}/" in path}
    assert below == set(RESERVED_NAMES)
    assert "/tasks/{name}" in paths


@pytest.mark.parametrize(
    "name",
    ["a", "file", "team/pets", "t/p", "n" * 128, f"{'n' * 63}/{'m' * 64}", "file/pets", "a.b/c-d"],
)
def test_names_with_and_without_a_namespace(name: str) -> None:
    assert is_task_name(name)
    assert re.search(TASK_NAME_PATTERN, name)
    assert len(name) <= 128


@pytest.mark.parametrize(
    "name",
    [
        *("/", "a/", "/a", "a//b", "a/b/c", "a/.b", "../b", "a/..", ".a/b", "a /b", "a\\b"),
        *(f"{'n' * 64}/a", f"a/{'n' * 65}"),
        *(f"a/{name}" for name in RESERVED_NAMES),
    ],
)
def test_texts_that_are_no_names(name: str) -> None:
    assert not is_task_name(name)


@pytest.fixture
def tasks(http: httpx.Client) -> Iterator[None]:
    """A plain name, the same in two namespaces, and names that are also paths."""
    names = ("pets", "team/pets", "other/pets", "file", "file/pets")
    for name in names:
        http.post("/v1/tasks", json={"name": name, **CLASSES}).raise_for_status()
    yield
    for name in names:
        http.delete(f"/v1/tasks/{name}")


@pytest.mark.serve
@pytest.mark.parametrize("safe", ["/", ""], ids=["plain slash", "escaped slash"])
@pytest.mark.parametrize("name", ["team/pets", "file/pets", "pets", "file"])
def test_all_routes_take_both_forms(http: httpx.Client, tasks: None, name: str, safe: str) -> None:
    path = f"/v1/tasks/{quote(name, safe=safe)}"
    details = http.get(path).json()
    assert details["name"] == name
    version = details["version"]
    file = http.get(f"{path}/file")
    assert file.headers["etag"] == f'"{version}"'
    assert file.headers["content-disposition"].endswith(f'"{name.split("/")[-1]}.safetensors"')
    assert http.get(f"{path}@{version[:12]}").json()["version"] == version
    assert http.get(f"{path}@{version[:12]}/file").content == file.content
    assert http.get(f"{path}/history").json()["name"] == name
    assert http.put(f"{path}/tags", json={"tags": ["x"]}).json()["tags"] == ["x"]
    assert http.patch(f"{path}/tags", json={"add": ["y"]}).json()["tags"] == ["x", "y"]
    assert http.put(f"{path}/pinned", json={"pinned": True}).json()["pinned"] is True
    assert http.put(f"{path}/alias", json={"of": f"{name}@{version[:8]}"}).json()["name"] == name
    assert http.put(path, content=file.content).json()["version"] == version
    assert http.delete(path).status_code == 204
    assert http.get(path).status_code == 404
    assert http.post(f"{path}/rollback").json()["version"] == version
    asked = http.post(f"/v1/classify?task={quote(name, safe=safe)}", content=picture(), headers=PNG)
    assert asked.json()["results"][0]["predictions"][0]["task"] == name


@pytest.mark.serve
def test_metrics_and_names_of_others_stay(http: httpx.Client, tasks: None) -> None:
    http.put("/v1/tasks/team/pets/tags", json={"tags": ["mine"]}).raise_for_status()
    assert http.get("/v1/tasks/other/pets").json()["tags"] == []
    assert http.get("/v1/tasks/pets").json()["tags"] == []
    assert 'route="/v1/tasks/{name}/tags"' in http.get("/metrics").text
    for path in ("a/b/c", "team//pets", "team/pets/other"):
        assert http.get(f"/v1/tasks/{path}").status_code == 404


@pytest.mark.serve
def test_a_folder_is_uploaded_into_a_namespace(
    served: Served, http: httpx.Client, tasks: None, tmp_path: Path
) -> None:
    data = http.get("/v1/tasks/team/pets/file").content
    for name in ("first", "second"):
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    options = ["--url", served.url]
    arguments = ["tasks", "upload", str(tmp_path), "--namespace", "filled", *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    with Client(served.url) as client:
        assert client.task("filled/first").version == client.task("team/pets").version
        assert client.download("filled/second") == data
        for name in ("filled/first", "filled/second"):
            client.delete(name)
        for wrong in ("a/file", "a/b/c", "a/", "/a", "../info", "a/.."):
            with pytest.raises(TaskNameInvalid):
                client.task(wrong)
    bad = http.put("/v1/tasks?namespace=a/b", content=b"")
    assert bad.status_code == 422
