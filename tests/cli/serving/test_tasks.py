"""``prompt-serve tasks`` and ``prompt-serve classify``."""

import json
from pathlib import Path

import pytest

from prompt_serve.prompts.prompt_file import to_bytes, write_prompt_file
from tests.cli.conftest import Run
from tests.client.fake_service import FakeService, numbered_image
from tests.client.test_clients import prompt


def test_tasks_come_and_go(service: FakeService, run: Run, tmp_path: Path) -> None:
    data = write_prompt_file(prompt("birds"), tmp_path / "birds.safetensors")

    assert run("tasks", "upload", tmp_path / "birds.safetensors").output.startswith(
        "birds is served: 2 classes, version abab"
    )
    assert run("tasks", "create", "fish", "cod", "eel").exit_code == 0
    listed = run("tasks", "list").output.splitlines()
    assert [line.split()[0] for line in listed] == ["name", "birds", "fish", "pets"]
    as_json = run("tasks", "list", "--json").output.splitlines()
    assert [json.loads(line)["name"] for line in as_json] == ["birds", "fish", "pets"]
    shown = run("tasks", "show", "fish", "--json").output
    assert json.loads(shown)["class_names"] == ["cat", "dog"]
    assert "classes      2: cat, dog\n" in run("tasks", "show", "fish").output

    target = tmp_path / "backup" / "b.safetensors"
    assert run("tasks", "download", "birds", "-o", target).exit_code == 0
    assert target.read_bytes() == data
    assert [file.name for file in target.parent.iterdir()] == ["b.safetensors"]

    assert run("tasks", "delete", "birds").output == "birds is deleted.\n"
    result = run("tasks", "delete", "birds")
    assert (result.exit_code, result.stderr) == (2, "Error: No task.\n")


def test_an_upload_can_be_given_a_name(service: FakeService, run: Run, tmp_path: Path) -> None:
    write_prompt_file(prompt("birds"), tmp_path / "birds.safetensors")

    run("tasks", "upload", tmp_path / "birds.safetensors", "--name", "owls")

    assert "owls" in service.behavior.tasks


@pytest.mark.parametrize(
    ("file_name", "options", "task", "noted"),
    [
        ("birds.safetensors", [], "birds", False),
        ("birds-v2.safetensors", [], "birds-v2", True),
        ("birds (1).safetensors", ["--name", "birds"], "birds", False),
        ("birds", ["--name", "owls"], "owls", True),
        ("v1.2.safetensors", [], "v1.2", True),
    ],
)
def test_a_file_replaces_only_the_task_of_its_name(
    service: FakeService,
    run: Run,
    tmp_path: Path,
    file_name: str,
    options: list[str],
    task: str,
    noted: bool,
) -> None:
    file = tmp_path / file_name
    file.write_bytes(to_bytes(prompt("birds")))
    before = set(service.behavior.tasks)
    result = run("tasks", "upload", file, *options)
    assert result.exit_code == 0
    assert set(service.behavior.tasks) - before == {task}
    assert ("Note: the file itself says 'birds'" in result.output) == noted


def test_no_service_is_one_line(run: Run, service: FakeService) -> None:
    service.stop()

    result = run("tasks", "list")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: Cannot reach {service.url} ")
    assert result.stderr.count("\n") == 1


def test_images_are_classified(service: FakeService, run: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(numbered_image(42))
    bad.write_bytes(b"bad")

    result = run("classify", good, "--task", "pets")
    assert result.exit_code == 0
    assert result.output == f"{good}  pets\n   90.00%  42\n"

    service.behavior.unknown = {42}
    result = run("classify", good, "--task", "pets")
    assert result.output == f"{good}  pets  unknown: none of its classes\n   90.00%  42\n"

    result = run("classify", good, bad, "--task", "pets")
    assert result.exit_code == 1
    assert "90.00%  42" in result.stdout
    assert result.stderr == f"{bad}: Error: Not an image.\n"

    lines = run("classify", good, bad, "--task", "pets", "--json").stdout.splitlines()
    assert json.loads(lines[0])["predictions"][0]["classes"][0]["class_name"] == "42"
    assert json.loads(lines[1])["error"]["code"] == "image-invalid"


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/ui"])
@pytest.mark.parametrize("command", [["tasks", "list"], ["tasks", "show", "pets"]])
def test_addresses_within_the_service_are_understood(
    command: list[str], end: str, service: FakeService, run: Run
) -> None:
    result = run(*command, "--url", service.url + end)

    assert result.exit_code == 0
    assert "pets" in result.output
