"""``-`` is standard input or output where a file is read or written."""

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prompt_serve.cli.main import main
from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.tasks.bulk import without_features
from tests.cli.conftest import Run
from tests.client.fake_service import FakeService, numbered_image
from tests.client.test_clients import prompt
from tests.golden import GOLDEN


def piped(data: bytes, *arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=data)


def test_a_prompt_file_is_inspected() -> None:
    data = to_bytes(next(iter(GOLDEN.values())))

    done = piped(data, "inspect", "-", "--json")

    assert done.exit_code == 0
    described = json.loads(done.stdout)
    assert (described["version"], described["file_bytes"]) == (version_of(data), len(data))


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n", to_bytes(prompt("x"))[:-9]])
def test_what_is_no_prompt_file_is_one_line(data: bytes) -> None:
    done = piped(data, "inspect", "-")

    assert done.exit_code == 2
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def test_an_image_is_classified(service: FakeService, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(numbered_image(7))

    done = piped(numbered_image(42), "classify", "-", other, "--task", "pets")
    as_json = piped(numbered_image(42), "classify", "-", "--task", "pets", "--json")

    assert done.stdout == f"-  pets\n   90.00%  42\n{other}  pets\n   90.00%  7\n"
    assert json.loads(as_json.stdout).items() >= {"source": "-", "filename": "-"}.items()
    empty = piped(b"", "classify", "-", "--task", "pets")
    assert (empty.exit_code, empty.stderr) == (1, "-: Error: Not an image.\n")


def test_a_prompt_file_is_uploaded_under_a_name(service: FakeService) -> None:
    data = to_bytes(prompt("birds"))

    done = piped(data, "tasks", "upload", "-", "--name", "owls")

    assert done.exit_code == 0, done.output
    assert service.behavior.tasks["owls"] == data
    assert "Note: the file itself says 'birds'" in done.stderr
    nameless = piped(data, "tasks", "upload", "-")
    assert nameless.exit_code == 2
    assert "name the task with --name" in nameless.stderr


def test_a_prompt_file_is_downloaded(service: FakeService, run: Run) -> None:
    data = to_bytes(prompt("birds"))
    service.behavior.tasks["birds"] = data

    done = run("tasks", "download", "birds", "--out", "-")

    assert (done.stdout_bytes, done.stderr) == (data, "")


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\n\n"])
def test_a_list_of_images_is_scored(service: FakeService, tmp_path: Path, separator: str) -> None:
    paths = [tmp_path / f"{i} é.png" for i in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(numbered_image(number))
    listed = separator.join(map(str, paths)).encode()

    done = piped(listed, "score", "-", "--task", "pets", "--out", "-", "--no-progress")

    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["source"] for row in rows] == list(map(str, paths))
    assert [row["class_name"] for row in rows] == [str(i) for i in range(5)]
    assert done.stderr.startswith("standard output: 5 images, 5 rows in ")


def test_a_table_on_standard_output_may_be_csv(service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(numbered_image(3))
    arguments = ("score", tmp_path, "--task", "pets", "--out", "-", "--no-progress")

    done = piped(b"", *arguments, "--format", "csv")

    [row] = csv.DictReader(io.StringIO(done.stdout))
    assert (row["source"], row["class_name"]) == (str(tmp_path / "a.png"), "3")
    assert piped(b"", *arguments, "--json").exit_code == 2
    assert "cannot be resumed" in piped(b"", *arguments, "--resume").stderr


def test_a_reader_that_stops_early_is_no_error(service: FakeService, tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number:03}.png").write_bytes(numbered_image(number))
    command = [sys.executable, "-m", "prompt_serve", "score", str(tmp_path), "--task", "pets"]

    with subprocess.Popen(
        [*command, "--out", "-", "--no-progress", "--chunk-size", "1", "--concurrency", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PROMPT_SERVE_URL": service.url},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["class_name"] == "0"
        process.stdout.close()
        stderr = process.stderr.read()

    assert "Traceback" not in stderr
    assert "Error" not in stderr


def test_a_registry_goes_from_one_database_to_another(run: Run, tmp_path: Path) -> None:
    first, second = (f"sqlite:///{tmp_path / name}.db" for name in ("first", "second"))
    database = Database(first)
    data = to_bytes(prompt("birds"))
    Registry(database).put(without_features("birds", data))
    database.close()

    exported = run("registry", "export", "--out", "-", "--database", first)
    assert exported.exit_code == 0, exported.output
    with zipfile.ZipFile(io.BytesIO(exported.stdout_bytes)) as archive:
        assert archive.testzip() is None
    imported = piped(exported.stdout_bytes, "registry", "import", "-", "--database", second)

    assert imported.stdout == "1 task imported.\n"
    info = json.loads(run("registry", "info", "--database", second, "--json").stdout)
    assert (info["tasks"], info["versions"]) == (1, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "-", "--out", "x.safetensors"),
        ("train", "photos", "--out", "-"),
        ("evaluate", "-", "photos"),
        ("export", "embedded", "--out", "-"),
        ("report", "runs", "--out", "-"),
    ],
)
def test_elsewhere_a_dash_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)

    assert done.exit_code == 2
    assert "- (standard input or output) is not possible here; name a file." in done.stderr


def test_a_file_of_that_name_has_its_folder_before_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = to_bytes(prompt("birds"))
    Path("./-").write_bytes(data)

    assert json.loads(run("inspect", "./-", "--json").stdout)["version"] == version_of(data)
