"""Any name can be shown on any terminal, and ``~`` is the home folder wherever a path is taken."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.cli.main import escape_what_cannot_be_shown
from prompt_serve.prompts.prompt_file import write_prompt_file
from prompt_serve.service.health import sqlite_file
from prompt_serve.training.data.cache_folder import cache_folder
from tests.cli.conftest import Run
from tests.client.fake_service import FakeService, numbered_image
from tests.drawings import draw_image
from tests.golden import GOLDEN
from tests.no_torch import without_torch

NAMES = ("red 🌹", "café", "猫", "naïve", "Ω")
TERMINALS = [
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "utf-8:strict"},
    {"PYTHONIOENCODING": "latin-1:replace"},
    {"LC_ALL": "C", "PYTHONUTF8": "0"},
    {"LC_ALL": "C", "PYTHONUTF8": "1"},
    {"LC_ALL": "C.utf8", "PYTHONUTF8": "0"},
]


def prompt_serve(
    *arguments: str | bytes | Path, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [sys.executable, "-m", "prompt_serve", *arguments],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


def encoding_of(terminal: dict[str, str]) -> str:
    return terminal.get("PYTHONIOENCODING", "utf-8").partition(":")[0].replace("ascii", "utf-8")


@pytest.mark.parametrize("terminal", TERMINALS, ids=str)
def test_class_names_are_shown_on_any_terminal(tmp_path: Path, terminal: dict[str, str]) -> None:
    golden = next(iter(GOLDEN.values()))
    path = tmp_path / "p.safetensors"
    probe = np.zeros(len(NAMES), dtype=np.float16)
    write_prompt_file(dataclasses.replace(golden, class_names=NAMES, probe=probe), path)

    text = prompt_serve("inspect", path, **terminal)
    document = prompt_serve("inspect", path, "--json", **terminal)

    assert (text.returncode, document.returncode) == (0, 0)
    assert "naïve" in text.stdout.decode(encoding_of(terminal))
    if ":replace" not in str(terminal):  # the user's own choice
        shown = json.loads(document.stdout.decode(encoding_of(terminal)))
        assert tuple(shown["class_names"]) == NAMES


@pytest.mark.parametrize("terminal", TERMINALS, ids=str)
def test_file_names_are_shown_on_any_terminal(
    service: FakeService, tmp_path: Path, terminal: dict[str, str]
) -> None:
    paths = [os.fsencode(tmp_path) + b"/" + name for name in (b"caf\xe9.png", "🌹.png".encode())]
    for path in paths:
        Path(os.fsdecode(path)).write_bytes(numbered_image(7))

    done = prompt_serve("classify", *paths, "--task", "pets", **terminal)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b".png  pets") == len(paths)
    gone = prompt_serve("classify", *(path + b"x" for path in paths), "--task", "pets", **terminal)
    assert gone.returncode == 2


@pytest.mark.parametrize("terminal", TERMINALS[:1] + TERMINALS[3:4] + TERMINALS[5:], ids=str)
def test_images_and_classes_of_any_name_are_learned(
    tmp_path: Path, terminal: dict[str, str]
) -> None:
    for label, name in enumerate(NAMES[:3]):
        for image in (b"caf\xe9.png", b"\xff.png", "🌹.png".encode()):
            color = (80 * label, 40, 200 - 80 * label)
            draw_image(tmp_path / "data" / name / os.fsdecode(image), color, label)
    out = tmp_path / "p.safetensors"

    # Importing torch takes longer than all else, and names are read by the same code without it.
    environment = {**without_torch(tmp_path / "no-torch"), **terminal}

    done = prompt_serve("train", tmp_path / "data", "--out", out, **environment)

    assert done.returncode == 0, done.stderr
    document = json.loads(prompt_serve("inspect", out, "--json").stdout)
    assert document["class_names"] == sorted(NAMES[:3])


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff", b"a\x80", b"\xc3", b"\xe9\xe8"])
def test_a_class_whose_name_is_not_utf_8_is_one_line_and_can_be_renamed(
    run: Run, tmp_path: Path, name: bytes
) -> None:
    folder = os.fsdecode(name)
    for label, one in enumerate((folder, "red")):
        draw_image(tmp_path / "data" / one / "1.png", (200 * label, 9, 9), label)

    result = run("train", tmp_path / "data", "--out", tmp_path / "p.safetensors")
    assert result.exit_code == 2
    assert f"Class name {folder!r} is not UTF-8 text; rename" in result.stderr

    options = ["--method", "class-vectors", "--class-name", f"{folder}=café"]
    renamed = run("train", tmp_path / "data", *options, "--out", tmp_path / "p.safetensors")
    assert renamed.exit_code == 0, renamed.output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
def test_what_is_escaped_in_json_is_still_the_same(rng: np.random.Generator, encoding: str) -> None:
    escape_what_cannot_be_shown()
    for text in ["", *NAMES, "caf\udce9", *(_any_text(rng) for _ in range(200))]:
        document = json.dumps(text, ensure_ascii=False)

        shown = document.encode(encoding, "prompt-serve-escape").decode(encoding)

        # Two surrogates in a row are one character to JSON.
        assert json.loads(shown) == json.loads(json.dumps(text))


def _any_text(rng: np.random.Generator) -> str:
    ranges = ((0x20, 0x7F), (0xA0, 0x100), (0x4E00, 0x9FFF), (0xD800, 0xE000), (0x1F300, 0x1F700))
    return "".join(chr(rng.integers(*ranges[rng.integers(5)])) for _ in range(12))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["train", "~/none", "--out", "x.safetensors"], "/none"),
        (["train", "x", "--out", "~/file/x.safetensors"], "/file/x.safetensors"),
        (["train", "x", "--out", "x.safetensors", "--log=~/file/x"], "/file/x"),
        (["train", "x", "--out", "x.safetensors", "--config", "~/none.toml"], "/none.toml"),
        (["evaluate", "~/none.safetensors", "x"], "/none.safetensors"),
        (["inspect", "~/none.safetensors"], "/none.safetensors"),
        (["score", "~/none", "--task", "t", "--out", "x.csv"], "/none"),
        (["score", "x", "--task", "t", "--out", "~/file/x.csv"], "/file/x.csv"),
        (["registry", "import", "~/none.zip"], "/none.zip"),
        (["registry", "export", "--out=~/file/x.zip"], "/file/x.zip"),
        (["export", "embedded", "--out", "~/file/x"], "/file/x"),
        (["report", "~/none"], "/none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_tilde_is_expanded_on_the_command_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], shown: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()

    result = run(*arguments)

    assert result.exit_code in (1, 2)
    assert f"{tmp_path}{shown}" in result.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PROMPT_SERVE_CACHE", "~/c", "c/features"),
        ("PROMPT_SERVE_CACHE", "~", "features"),
        ("XDG_CACHE_HOME", "~/c", "c/prompt-serve/features"),
        ("XDG_CACHE_HOME", "", ".cache/prompt-serve/features"),
    ],
)
def test_a_tilde_is_expanded_in_the_variables_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, expected: str
) -> None:
    monkeypatch.delenv("PROMPT_SERVE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, value)

    assert cache_folder("features") == tmp_path / expected


def test_a_tilde_is_expanded_in_the_folder_of_datasets(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PROMPT_SERVE_DATASETS", "~/sets")

    assert f"{tmp_path}/sets" in run("data", "list").output


@pytest.mark.parametrize(
    "url", ["sqlite:///~/a.db", "sqlite:///~/f/a.db", "sqlite+pysqlite:///~/a"]
)
@pytest.mark.parametrize("named", ["option", "variable"])
def test_a_tilde_is_expanded_in_a_database_url(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, named: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = ["--database", url]
    if named == "variable":
        monkeypatch.setenv("PROMPT_SERVE_DATABASE_URL", url)
        options = []

    result = run("registry", "info", *options)

    assert result.exit_code == 0, result.output
    path = tmp_path / url.partition("~/")[2]
    assert path.is_file()
    assert not (tmp_path / "~").exists()
    assert sqlite_file(url) == path
