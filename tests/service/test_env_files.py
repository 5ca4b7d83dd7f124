"""Variables from secret files and ``.env``: which of them win, what is read, what is an error."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from prompt_serve.bundle import SHIPPED, shipped_bundle
from prompt_serve.errors import ConfigInvalid
from prompt_serve.service.env_files import load_env_files
from prompt_serve.service.settings import Settings
from tests.service.process import ROOT, environment, refused_start, service

A, B = "PROMPT_SERVE_A", "PROMPT_SERVE_B"


def _loaded(folder: Path, text: str | bytes = "", **variables: str) -> dict[str, str]:
    """Return what is added to an environment by a file with this text, and by ``secrets/``."""
    file = folder / "variables.env"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    given = {"PROMPT_SERVE_ENV_FILE": str(file), **variables}
    if (folder / "secrets").is_dir():
        given["PROMPT_SERVE_SECRETS_DIR"] = str(folder / "secrets")
    after = dict(given)
    load_env_files(after)
    return {name: value for name, value in after.items() if name not in given}


def _secret(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / "secrets" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("in_secrets", [True, False])
@pytest.mark.parametrize("in_environment", [True, False])
def test_the_environment_beats_secret_files_and_these_beat_the_env_file(
    tmp_path: Path, in_environment: bool, in_secrets: bool, in_file: bool
) -> None:
    if in_secrets:
        _secret(tmp_path, A, "secret")
    added = _loaded(
        tmp_path, f"{A}=file\n" if in_file else "", **({A: "environment"} if in_environment else {})
    )

    assert added.get(A) == (
        None if in_environment else "secret" if in_secrets else "file" if in_file else None
    )


def test_an_empty_variable_of_the_environment_wins_too(tmp_path: Path) -> None:
    assert _loaded(tmp_path, f"{A}=file", **{A: ""}) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"{A}=x", "x"),
        (f"export {A}=x\r\n", "x"),
        (f"# a comment\n\n  {A} = 'x y' # another", "x y"),
        (f'{A}="x\\ny"', "x\ny"),
        (f"{A}=postgresql://u:p#$w%@host/db", "postgresql://u:p#$w%@host/db"),
        (f"{A}=${{HOME}}/x", "${HOME}/x"),
        (f"{A}=", ""),
        (f"{A}=é", "é"),
        (f"{A}=1\n{A}=2", "2"),
        (f"\ufeff{A}=x".encode(), "x"),
        (f"{A}=x\n".encode("utf-16"), "x"),
    ],
)  # fmt: skip
def test_lines_are_read_as_other_programs_read_them(
    tmp_path: Path, text: str | bytes, value: str
) -> None:
    assert _loaded(tmp_path, text) == {A: value}


@pytest.mark.parametrize(
    "text",
    ["OTHER=1", "no variable at all", "=5", "X='unclosed", "prompt_serve_a=1", f"MY_{A}=1"],
)
def test_lines_of_other_programs_are_ignored(tmp_path: Path, text: str) -> None:
    assert _loaded(tmp_path, f"{text}\n{B}=2\n") == {B: "2"}


@pytest.mark.parametrize("name", [A, A.lower(), "Prompt_Serve_A"])
@pytest.mark.parametrize("content", ["s3cret", "s3cret\n", "\ufeffs3cret\r\n", "  s3cret "])
def test_a_secret_file_has_the_name_of_its_variable(
    tmp_path: Path, name: str, content: str
) -> None:
    _secret(tmp_path, name, content)
    _secret(tmp_path, "other_secret", b"\xff")  # of another program

    assert _loaded(tmp_path) == {A: "s3cret"}


def test_secrets_as_kubernetes_mounts_them_are_read(tmp_path: Path) -> None:
    _secret(tmp_path, "x", "")
    version = tmp_path / "secrets" / "..2025_01_01"
    version.mkdir()
    (version / A).write_text("s3cret")
    (tmp_path / "secrets" / "..data").symlink_to(version.name)
    (tmp_path / "secrets" / A).symlink_to(f"..data/{A}")

    assert _loaded(tmp_path) == {A: "s3cret"}


def test_the_env_file_may_name_the_folder_of_secrets(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / A).write_text("s3cret")

    added = _loaded(tmp_path, f"PROMPT_SERVE_SECRETS_DIR={folder}")

    assert added == {A: "s3cret", "PROMPT_SERVE_SECRETS_DIR": str(folder)}


@pytest.mark.parametrize(
    ("text", "line", "name"),
    [
        (f"{A}", 1, A),
        (f"\n\n{A} 3", 3, A),
        (f"X=1\nexport {A}\n", 2, A),
        (f"# c\n{A}='unclosed\n", 2, A),
        (f'X=1\n\n  {A}="unclosed', 3, A),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    tmp_path: Path, text: str, line: int, name: str
) -> None:
    with pytest.raises(ConfigInvalid, match=f"variables.env, line {line}: expected") as caught:
        _loaded(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert "unclosed" not in str(caught.value)  # it may be a secret


@pytest.mark.parametrize(
    "content", [b"\xff", b"abc\0d", "é".encode("latin-1"), b"\x80abc", b"a\xc3"]
)
@pytest.mark.parametrize("kind", ["line", "secret"])
def test_a_value_that_is_no_text_is_an_error(tmp_path: Path, kind: str, content: bytes) -> None:
    if kind == "secret":
        _secret(tmp_path, A, content)
    with pytest.raises(ConfigInvalid, match="a value that is not UTF-8 text"):
        _loaded(tmp_path, b"" if kind == "secret" else f"{A}=".encode() + content)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"PROMPT_SERVE_ENV_FILE": "missing.env"}, "No such file"),
        ({"PROMPT_SERVE_ENV_FILE": "missing/.env"}, "No such file"),
        ({"PROMPT_SERVE_ENV_FILE": "."}, "Is a directory"),
        ({"PROMPT_SERVE_SECRETS_DIR": "missing"}, "No such file"),
        ({"PROMPT_SERVE_SECRETS_DIR": "a-file"}, "Not a directory"),
    ],
)
def test_a_named_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    with pytest.raises(ConfigInvalid, match=f"cannot be read: {reason}") as caught:
        load_env_files(variables)
    assert "\n" not in str(caught.value)
    assert next(iter(variables)) in str(caught.value)


@pytest.mark.parametrize("named", [None, "", ".env", "sub/.env", "sub/other"])
def test_without_a_name_the_env_file_of_the_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for path in (".env", "sub/.env", "sub/other"):
        (tmp_path / path).write_text(f"{A}={path}\n")
    variables = {} if named is None else {"PROMPT_SERVE_ENV_FILE": named}

    load_env_files(variables)

    assert variables.get(A) == {None: ".env", "": None}.get(named, named)


@pytest.mark.parametrize("make", ["nothing", "a folder"])
def test_a_folder_needs_no_env_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if make == "a folder":  # of a virtual environment
        (tmp_path / ".env").mkdir()
    variables: dict[str, str] = {}

    load_env_files(variables)

    assert variables == {}


def _command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PROMPT_SERVE_")}
    return subprocess.run(
        [sys.executable, "-m", "prompt_serve", *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_commands_read_the_same_files(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "PROMPT_SERVE_URL=http://127.0.0.1:9\nPROMPT_SERVE_HOME=from-file\n"
    )

    asked = _command(tmp_path, "tasks", "list")
    made = _command(tmp_path, "keys", "create", "me")
    elsewhere = _command(tmp_path, "keys", "create", "me", PROMPT_SERVE_HOME="from-environment")
    broken = _command(tmp_path, "keys", "list", PROMPT_SERVE_ENV_FILE="missing")

    assert "http://127.0.0.1:9" in asked.stderr
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "from-file" / "registry.db").is_file()
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert (tmp_path / "from-environment" / "registry.db").is_file()
    assert broken.returncode == 2
    assert broken.stderr.startswith("Error: PROMPT_SERVE_ENV_FILE=missing cannot be read")
    assert broken.stderr.count("\n") == 1


@pytest.mark.serve
@pytest.mark.slow
def test_a_service_reads_them_and_its_workers_too(tmp_path: Path) -> None:
    file = tmp_path / "service.env"
    file.write_text("PROMPT_SERVE_MAX_IMAGES=7\nPROMPT_SERVE_MAX_TASKS=8\nOTHER=1\n")
    _secret(tmp_path, "prompt_serve_max_images", "9\n")
    _secret(tmp_path, "prompt_serve_database_url", f"sqlite:///{tmp_path / 'of-the-secret.db'}\n")

    with service(
        tmp_path / "home",
        shipped_bundle(SHIPPED[0]),
        env_file=str(file),
        secrets_dir=str(tmp_path / "secrets"),
    ) as running:
        limits = httpx.get(f"{running.url}/v1/info").json()["limits"]

    assert (limits["max_images"], limits["max_tasks"]) == (9, 8)
    assert (tmp_path / "of-the-secret.db").is_file()
    assert not (tmp_path / "home" / "registry.db").exists()


_FAULTS = [
    ("PROMPT_SERVE_MAX_IMAGE=3", "PROMPT_SERVE_MAX_IMAGE: did you mean PROMPT_SERVE_MAX_IMAGES?"),
    ("PROMPT_SERVE_GPU=1", "PROMPT_SERVE_GPU: unknown setting"),
    ("PROMPT_SERVE_MAX_BATCH=many", "PROMPT_SERVE_MAX_BATCH='many'"),
    ("PROMPT_SERVE_DEVICE", "service.env, line 1: expected PROMPT_SERVE_NAME=value"),
    (None, "cannot be read: No such file or directory"),
]


@pytest.mark.parametrize(("line", "message"), _FAULTS)
def test_what_is_wrong_with_them_is_told(tmp_path: Path, line: str | None, message: str) -> None:
    variables = {"PROMPT_SERVE_ENV_FILE": str(_env_file(tmp_path, line))}

    def read() -> None:
        load_env_files(variables)
        Settings.from_environment(variables)

    with pytest.raises(ConfigInvalid, match=re.escape(message)):
        read()


@pytest.mark.serve
@pytest.mark.slow
def test_a_start_says_what_is_wrong_with_them(tmp_path: Path) -> None:
    line, message = _FAULTS[3]
    file = _env_file(tmp_path, line)

    output = refused_start(environment(tmp_path, shipped_bundle(SHIPPED[0]), env_file=str(file)))

    assert message in output


def _env_file(folder: Path, line: str | None) -> Path:
    file = folder / "service.env"
    if line is not None:
        file.write_text(line + "\n")
    return file
