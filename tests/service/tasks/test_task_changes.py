"""Versions, names and whole registries through the client and the command, on a started service."""

import io
import json
import shlex
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from prompt_serve.cli.main import main
from prompt_serve.client import Client
from prompt_serve.errors import (
    ArchiveInvalid,
    RequestInvalid,
    TaskNotFound,
    VersionChanged,
    VersionInUse,
)
from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.training.clip.backbone import Backbone
from tests.service.process import Served
from tests.service.prompts import learned_prompt, picture

pytestmark = pytest.mark.serve


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, timeout_s=120) as opened:
        yield opened


@pytest.fixture
def files(tiny_backbone: Backbone) -> list[bytes]:
    """Prompt files of two classes that differ."""
    return [to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"], seed=s)) for s in range(8)]


def test_a_task_goes_back_and_forth_and_by_other_names(client: Client, files: list[bytes]) -> None:
    first, second = (client.upload(data, "moved").version for data in files[:2])
    assert client.rollback("moved").version == first
    assert client.classify(picture(), ["moved", f"moved@{second[:8]}"]).predictions is not None
    assert client.download(f"moved@{second[:12]}") == files[1]
    assert client.alias("moved-prod", f"moved@{second}").version == second
    assert client.set_tags("moved-prod", ["eu", "prod"]).tags == ["eu", "prod"]
    assert [task.name for task in client.tasks(tags=["prod"])] == ["moved-prod"]
    assert [task.name for task in client.tasks(search="MOVED")] == ["moved", "moved-prod"]
    assert client.set_pinned("moved").pinned
    with pytest.raises(VersionInUse, match="'moved-prod' points at"):
        client.delete_version(second[:8])

    client.delete("moved")
    with pytest.raises(TaskNotFound):
        client.task("moved")
    assert client.rollback("moved").version == first
    whats = [change.what for change in client.history("moved")]
    assert whats == ["rollback", "delete", "rollback", "put", "put"]
    client.delete("moved")
    client.delete("moved-prod")


def test_of_many_changes_with_one_etag_exactly_one_is_made(
    served: Served, client: Client, files: list[bytes]
) -> None:
    client.upload(files[0], "contested-etag", new=True)
    with pytest.raises(VersionChanged, match="is at version"):
        client.upload(files[1], "contested-etag", new=True)
    url = f"{served.url}/v1/tasks/contested-etag"
    headers = {"if-match": httpx.get(url, timeout=120).headers["etag"]}

    def put(data: bytes) -> httpx.Response:
        return httpx.put(url, content=data, headers=headers, timeout=120)

    with ThreadPoolExecutor(7) as pool:
        answers = list(pool.map(put, files[1:]))

    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 6}
    [won] = [answer.json()["version"] for answer in answers if answer.status_code == 200]
    lost = next(answer.json() for answer in answers if answer.status_code == 412)
    assert (lost["code"], lost["expected"]) == ("version-changed", version_of(files[0]))
    assert client.task("contested-etag").version == won
    client.delete("contested-etag", expected=won)


def uploads(served: Served, result: str) -> float:
    """So many prompt files were received with that result."""
    text = httpx.get(f"{served.url}/metrics").text
    name = f'prompt_serve_uploads_total{{result="{result}"}}'
    return next(float(s.rpartition(" ")[2]) for s in text.splitlines() if s.startswith(name))


def test_a_folder_is_uploaded_whole_or_file_by_file(
    served: Served, client: Client, files: list[bytes], tmp_path: Path
) -> None:
    for i, data in enumerate(files[:3]):
        (tmp_path / f"bulk-{i}.safetensors").write_bytes(data)
    (tmp_path / "bulk-bad.safetensors").write_bytes(files[0][:-5])

    with pytest.raises(ArchiveInvalid, match="1 of 4 prompt files cannot be served") as caught:
        client.upload_many(tmp_path)
    assert [error["name"] for error in caught.value.facts["errors"]] == ["bulk-bad"]  # type: ignore[attr-defined]
    assert list(client.tasks(search="bulk-")) == []

    before = {result: uploads(served, result) for result in ("stored", "refused")}
    report = client.upload_many(tmp_path, atomic=False)
    assert (report.served, report.failed) == (3, 1)
    risen = {result: uploads(served, result) - count for result, count in before.items()}
    assert risen == {"stored": 3, "refused": 1}
    [bad] = [item for item in report.items if item.error is not None]
    assert bad.name == "bulk-bad"
    assert {task.version for task in client.tasks(search="bulk-")} == {
        version_of(data) for data in files[:3]
    }
    for i in range(3):
        client.delete(f"bulk-{i}")


def test_tags_come_with_an_upload_and_stay_with_the_next(
    client: Client, files: list[bytes], tmp_path: Path
) -> None:
    assert client.upload(files[0], "tagged-0", tags=["eu", "test"]).tags == ["eu", "test"]
    assert client.upload(files[1], "tagged-0", tags=["prod"]).tags == ["eu", "prod", "test"]
    assert client.upload(files[1], "tagged-0").tags == ["eu", "prod", "test"]
    assert client.edit_tags("tagged-0", add=["a"], remove=["test", "none"]).tags == [
        "a", "eu", "prod",
    ]  # fmt: skip
    assert client.create_zero_shot("tagged-1", ["cat", "dog"], tags=["eu"]).tags == ["eu"]
    for name in ("tagged-1", "tagged-2"):
        (tmp_path / f"{name}.safetensors").write_bytes(files[2])
    assert client.upload_many(tmp_path, tags=["bulk"]).served == 2
    found = {task.name: task.tags for task in client.tasks(search="tagged-")}
    assert found == {
        "tagged-0": ["a", "eu", "prod"],
        "tagged-1": ["bulk", "eu"],
        "tagged-2": ["bulk"],
    }
    for name in found:
        client.delete(name)


@pytest.mark.parametrize("tag", ["", " x", "-x", "a b", "x" * 65, "é"])
def test_what_is_no_tag_is_refused_and_nothing_changes(
    served: Served, client: Client, files: list[bytes], tag: str
) -> None:
    client.upload(files[0], "untagged")

    with pytest.raises(RequestInvalid):
        client.upload(files[1], "untagged", tags=[tag])
    with pytest.raises(RequestInvalid):
        client.edit_tags("untagged", add=["good", tag])
    with pytest.raises(RequestInvalid, match="both added and removed"):
        client.edit_tags("untagged", add=["good"], remove=["good"])

    task = client.task("untagged")
    assert (task.version, task.tags) == (version_of(files[0]), [])
    client.delete("untagged")


def test_a_registry_is_exported_and_imported(client: Client, files: list[bytes]) -> None:
    client.upload(files[0], "exported")
    client.set_tags("exported", ["eu"])
    data = client.export_registry()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert f"versions/{version_of(files[0])}.safetensors" in archive.namelist()

    client.upload(files[1], "exported")
    client.set_tags("exported", [])
    client.import_registry(data)

    task = client.task("exported")
    assert (task.version, task.tags) == (version_of(files[0]), ["eu"])
    client.delete("exported")


def test_the_command_does_the_same(served: Served, files: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for i, data in enumerate(files[:2]):
        (folder / f"cli-{i}.safetensors").write_bytes(data)
    first, second = (version_of(data)[:12] for data in files[:2])

    def say(*lines: str) -> str:
        outputs = []
        for line in lines:
            result = CliRunner().invoke(main, [*shlex.split(line), "--url", served.url])
            assert result.exit_code == 0, result.output
            outputs.append(result.stdout)
        return "".join(outputs)

    said = say(
        f"tasks upload {folder}",
        "tasks alias cli-0 cli-1",
        "tasks rollback cli-0",
        "tasks tag cli-0 a b",
        "tasks tag cli-0 eu prod",
        "tasks tag cli-0 --add test --remove eu",
        "tasks tag cli-0",
        "tasks tag cli-0 --clear",
        "tasks tag cli-0 --add prod --add eu",
        "tasks pin cli-0",
        "tasks list --search cli-",
        "tasks history cli-0",
        f"registry export -o {tmp_path / 'all.zip'}",
        f"registry import {tmp_path / 'all.zip'}",
        "tasks delete cli-0",
        "tasks delete cli-1",
    ).splitlines()

    assert said[0] == "2 tasks are served."
    assert said[1] == f"cli-0 is served: 2 classes, version {second}."
    assert said[2] == f"cli-0 is served: 2 classes, version {first}."
    assert said[3:9] == [
        f"cli-0: {tags}"
        for tags in ("a b", "eu prod", "prod test", "prod test", "no tags", "eu prod")
    ]
    said = said[5:]
    assert said[5].split() == ["name", "version", "method", "classes", "updated", "tags"]
    assert said[6].split()[:2] == ["cli-0", first]
    assert said[6].endswith("Z  eu prod (pinned)")
    assert [line.split()[1] for line in said[8:12]] == ["change", "rollback", "alias", "put"]
    assert "tasks imported." in said[13]


def test_the_commands_describe_tasks_as_json(
    served: Served, files: list[bytes], tmp_path: Path
) -> None:
    for i, data in enumerate(files[:2]):
        (tmp_path / f"json-{i}.safetensors").write_bytes(data)
    (tmp_path / "a.png").write_bytes(picture())
    first, second = map(version_of, files[:2])

    def say(line: str) -> list[dict[str, Any]]:
        result = CliRunner().invoke(main, [*shlex.split(line), "--json", "--url", served.url])
        assert result.exit_code == 0, result.output
        try:
            return [json.loads(result.stdout)]
        except ValueError:
            return [json.loads(line) for line in result.stdout.splitlines()]

    [report] = say(f"tasks upload {tmp_path} --tag up")
    assert (report["served"], report["failed"]) == (2, 0)
    [task] = say(f"tasks upload {tmp_path / 'json-1.safetensors'} --name json-0 --tag again")
    assert (task["version"], task["tags"]) == (second, ["again", "up"])
    assert say("tasks rollback json-0")[0]["version"] == first
    assert say("tasks alias json-0 json-1")[0]["version"] == second
    assert say("tasks tag json-0 --remove again")[0]["tags"] == ["up"]
    assert say("tasks pin json-0")[0]["pinned"]
    assert not say("tasks pin json-0 --off")[0]["pinned"]
    assert say("tasks create json-2 cat dog --tag up")[0]["tags"] == ["up"]
    assert say("tasks show json-2")[0]["class_names"] == ["cat", "dog"]
    assert [one["name"] for one in say("tasks list --tag up")] == ["json-0", "json-1", "json-2"]
    changes = say("tasks history json-0")
    assert [change["what"] for change in changes] == ["alias", "rollback", "put", "put"]
    [image] = say(f"classify {tmp_path / 'a.png'} --task json-0 --task json-2")
    assert [prediction["task"] for prediction in image["predictions"]] == ["json-0", "json-2"]
    [summary] = say(f"score {tmp_path / 'a.png'} --task json-0 --out {tmp_path / 'scores.csv'}")
    assert (summary["images"], summary["rows"], summary["errors"]) == (1, 1, 0)
    with Client(served.url, timeout_s=120) as client:
        (tmp_path / "all.zip").write_bytes(client.export_registry())
        [imported] = say(f"registry import {tmp_path / 'all.zip'}")
        assert {"json-0", "json-1", "json-2"} <= {item["name"] for item in imported["items"]}
        for name in ("json-0", "json-1", "json-2"):
            client.delete(name)
