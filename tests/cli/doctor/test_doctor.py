"""``prompt-serve doctor``: facts of installation, machine, registry and service, and problems."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prompt_serve import __version__
from prompt_serve.bundle import shipped_bundle
from prompt_serve.cli.doctor.machine import _cpu_quota
from prompt_serve.service.storage.migrations import HEAD
from tests.cli.conftest import Run
from tests.client.fake_service import FakeService, problem
from tests.no_torch import run_without_torch

SECTIONS = [
    "installation", "machine", "settings", "home", "bundles", "device", "database", "service",
]  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Home folder of the service, which is not there yet."""
    monkeypatch.setenv("PROMPT_SERVE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PROMPT_SERVE_URL", raising=False)
    monkeypatch.delenv("PROMPT_SERVE_API_KEY", raising=False)
    return tmp_path / "home"


def examined(run: Run, *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the document; the text has the same problems and notes."""
    done, text = run("doctor", "--json", *options), run("doctor", *options)
    document = json.loads(done.stdout)
    assert done.stderr == text.stderr == ""
    assert text.exit_code == done.exit_code == (0 if document["ok"] else 1)
    lines = text.stdout.splitlines()
    shown = [line.removeprefix("Problem: ") for line in lines if line.startswith("Problem: ")]
    assert shown == document["problems"]
    assert sum(line.startswith("Note: ") for line in lines) == len(document["notes"])
    assert ("Nothing is wrong." in lines) == document["ok"]
    return done.exit_code, document


def test_a_new_installation_is_described_and_left_as_it_is(run: Run, home: Path) -> None:
    code, document = examined(run)

    assert code == 0
    assert [name for name in document if name in SECTIONS] == SECTIONS
    assert document["installation"]["version"] == __version__
    assert document["installation"]["packages"]["numpy"]
    assert document["machine"]["usable_cores"] >= 1
    assert "CPUExecutionProvider" in document["machine"]["execution_providers"]
    served, other = document["bundles"]["bundles"]
    assert (served["backbone"], served["precision"], served["served"]) == ("embedded", "fp32", True)
    assert len(served["fingerprint"]) == 64
    assert other["backbone"] == "embedded-vit"
    assert document["database"]["state"] == "not created"
    assert document["service"] == {"url": "http://localhost:3000", "reachable": False}
    assert any("No service runs at http://localhost:3000" in note for note in document["notes"])
    assert not home.exists()


def test_bundles_at_home_and_rows_of_the_database_are_shown(
    run: Run, home: Path, tiny_bundle: Path
) -> None:
    (home / "bundles").mkdir(parents=True)
    (home / "bundles" / "tiny").symlink_to(tiny_bundle)
    run("keys", "create", "ci")
    before = (home / "registry.db").read_bytes()

    _, document = examined(run)

    (found,) = [b for b in document["bundles"]["bundles"] if "tiny" in b["folder"]]
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert found["fingerprint"] == manifest["backbone"]["fingerprint"]
    database = document["database"]
    assert (database["state"], database["tables"]) == ("current", HEAD)
    assert (database["tasks"], database["versions"], database["keys"]) == (0, 0, 1)
    assert (home / "registry.db").read_bytes() == before


def no_such_bundle(home: Path, set_variable: Callable[[str, str], None]) -> str:
    set_variable("PROMPT_SERVE_BUNDLE", str(home / "nothing"))
    return "There is no bundle in "


def a_damaged_bundle(home: Path, set_variable: Callable[[str, str], None]) -> str:
    bundle = home / "copy"
    bundle.mkdir(parents=True)
    for file in shipped_bundle("embedded").iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    data = bytearray((bundle / "image_encoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "image_encoder.onnx").write_bytes(data)
    set_variable("PROMPT_SERVE_BUNDLE", str(bundle))
    return "image_encoder.onnx is not the file that the manifest describes"


def a_misspelled_setting(home: Path, set_variable: Callable[[str, str], None]) -> str:
    set_variable("PROMPT_SERVE_WORKRES", "2")
    return "PROMPT_SERVE_WORKRES: did you mean PROMPT_SERVE_WORKERS?"


def a_setting_out_of_range(home: Path, set_variable: Callable[[str, str], None]) -> str:
    set_variable("PROMPT_SERVE_WORKERS", "0")
    return "PROMPT_SERVE_WORKERS='0'"


def a_home_in_a_file(home: Path, set_variable: Callable[[str, str], None]) -> str:
    home.write_text("in the way")
    return f"The home folder {home} cannot be written: it is a file, not a folder."


def text_for_a_database(home: Path, set_variable: Callable[[str, str], None]) -> str:
    home.mkdir()
    (home / "registry.db").write_text("text " * 1000)
    return "file is not a database"


def a_newer_database(home: Path, set_variable: Callable[[str, str], None]) -> str:
    home.mkdir()
    with sqlite3.connect(home / "registry.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    database.close()
    return "have version 9999; this prompt-serve supports versions up to "


def another_kind_of_database(home: Path, set_variable: Callable[[str, str], None]) -> str:
    set_variable("PROMPT_SERVE_DATABASE_URL", "mysql://me:secret@host/x")
    return "mysql://me:***@host/x' is a database that is not supported"


def no_server_of_a_database(home: Path, set_variable: Callable[[str, str], None]) -> str:
    set_variable("PROMPT_SERVE_DATABASE_URL", "postgresql://me:secret@127.0.0.1:9/x")
    return "The registry postgresql+psycopg://me:***@127.0.0.1:9/x cannot be read: "


def a_service_that_is_not_there(home: Path, set_variable: Callable[[str, str], None]) -> str:
    set_variable("PROMPT_SERVE_URL", "http://127.0.0.1:9")
    return "Cannot reach http://127.0.0.1:9 "


@pytest.mark.parametrize(
    "spoil",
    [
        no_such_bundle,
        a_damaged_bundle,
        a_misspelled_setting,
        a_setting_out_of_range,
        a_home_in_a_file,
        text_for_a_database,
        a_newer_database,
        another_kind_of_database,
        no_server_of_a_database,
        a_service_that_is_not_there,
    ],
)
def test_a_problem_is_told_with_exit_code_1(
    run: Run,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, Callable[[str, str], None]], str],
) -> None:
    said = spoil(home, monkeypatch.setenv)

    code, document = examined(run)

    assert code == 1
    assert sum(said in line for line in document["problems"]) == 1
    assert "secret" not in json.dumps(document)
    assert list(document)[:2] == ["ok", "problems"]


def test_an_older_database_is_noted_and_not_upgraded(run: Run, home: Path) -> None:
    home.mkdir()
    with sqlite3.connect(home / "registry.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('0002')")
    database.close()

    code, document = examined(run)

    assert (code, document["database"]["tables"]) == (0, "0002")
    assert f"The next start upgrades the tables from 0002 to {HEAD}." in document["notes"]


def test_a_running_service_is_described(run: Run, service: FakeService) -> None:
    code, document = examined(run, "--url", service.url)

    assert code == 0
    described = document["service"]
    assert (described["reachable"], described["key_required"]) == (True, False)
    assert (described["backbone"], described["precision"], described["tasks"]) == (
        "fake", "fp32", 1,
    )  # fmt: skip
    assert described["version"] == "0.1.0"


@pytest.mark.parametrize(("key", "is_accepted"), [("", False), ("ps_x", False), ("ps_x", True)])
def test_a_service_that_wants_a_key(
    run: Run,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    is_accepted: bool,
) -> None:
    monkeypatch.setenv("PROMPT_SERVE_API_KEY", key)
    refusal = problem("not-authenticated", 401, "No key.")
    service.behavior.faults.extend([refusal] if is_accepted else [refusal, refusal])

    done = run("doctor", "--json", "--url", service.url)

    document = json.loads(done.stdout)
    assert done.exit_code == (0 if is_accepted else 1)
    assert document["service"]["key_required"] is True
    assert ("tasks" in document["service"]) is is_accepted
    if not is_accepted:
        (line,) = document["problems"]
        hint = "has a key that it does not accept" if key else "Set PROMPT_SERVE_API_KEY"
        assert hint in line
    assert "ps_x" not in json.dumps(document)


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("max 100000", None),
        ("200000 100000", 2.0),
        ("50000 100000\n", 0.5),
        ("", None),
        ("x", None),
    ],
)
def test_the_quota_of_a_container_is_read(
    tmp_path: Path, content: str, cores: float | None
) -> None:
    (tmp_path / "cpu.max").write_text(content)

    assert _cpu_quota(tmp_path / "cpu.max") == cores
    assert _cpu_quota(tmp_path / "none") is None


def test_it_works_without_torch_and_imports_none(tmp_path: Path) -> None:
    done = run_without_torch(tmp_path, "-m", "prompt_serve", "doctor", "--json")

    document = json.loads(done.stdout)
    assert "torch" in document["installation"]["missing"]["train"]
    assert any("The extra train is not complete (torch" in note for note in document["notes"])
    code = (
        "import sys\n"
        "from prompt_serve.cli.main import main\n"
        "main(['doctor'], standalone_mode=False)\n"
        "print(*{'torch', 'bentoml', 'open_clip'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_without_the_extra_serve_the_rest_is_checked(tmp_path: Path) -> None:
    hidden = "from importlib.machinery import PathFinder\nfind = PathFinder.find_spec\n" + (
        "ABSENT = {'torch', 'onnxruntime', 'tokenizers', 'ftfy', 'sqlalchemy', 'bentoml'}\n"
        "PathFinder.find_spec = lambda name, path=None, target=None: (\n"
        "    None if name.partition('.')[0] in ABSENT else find(name, path, target))\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hidden)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    done = subprocess.run(
        [sys.executable, "-m", "prompt_serve", "doctor", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["machine"]["execution_providers"] == []
    assert any("pip install 'prompt-serve[serve]'" in note for note in document["notes"])
    assert any("The local service was not checked" in note for note in document["notes"])
