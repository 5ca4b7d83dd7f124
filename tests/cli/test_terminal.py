"""Names in files of others do not reach a terminal as commands to it."""

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prompt_serve.cli.main import without_controls
from prompt_serve.prompts.prompt_file import to_bytes
from tests.golden import GOLDEN
from tests.service.process import ROOT

HOSTILE = [
    "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x1b[8mhidden", "a\x08\x08b", "a\rError: none", "\x9b31m",
    "\x1bP1$r\x1b\\", "a\0b", "\x7f", "\x85", "\x1b[A",
]  # fmt: skip
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def on_a_terminal(*arguments: str) -> str:
    """Run a command whose output is a terminal, and return what it writes."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "prompt_serve", *arguments],
        stdin=subprocess.DEVNULL, stdout=follower, stderr=follower, cwd=ROOT,
    )  # fmt: skip
    os.close(follower)
    written = b""
    try:
        while chunk := os.read(leader, 65536):
            written += chunk
    except OSError:  # how Linux says that nobody writes any more
        pass
    finally:
        os.close(leader)
        process.wait(timeout=60)
    return written.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_control_characters_are_shown(name: str) -> None:
    shown = without_controls(f"class {name}")

    assert not _CONTROLS.search(shown)
    assert "\r" not in shown
    quoted = json.dumps(f"class {name}", ensure_ascii=False)
    assert json.loads(without_controls(quoted)) == f"class {name}"


@pytest.mark.parametrize(
    "text",
    ["plain", "é 猫 🐈", "a\tb\n", "\r 50%|████", "\n", "\n\n", "\x1b[A", "\x1b[A\x1b[A", ""],
)
def test_texts_and_progress_bars_stay(text: str) -> None:
    assert without_controls(text) == text


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_hostile_prompt_file_is_inspected_on_a_terminal(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    golden = GOLDEN["zero_shot"]
    names = ("\x1b]0;title\x07cat", "dog\x9b2J", "owl\x1b[8m")
    prompt = replace(golden, name="\x1b[2J", method="\x1b[31mdip", class_names=names)
    (tmp_path / "a.safetensors").write_bytes(to_bytes(prompt))

    written = on_a_terminal("inspect", str(tmp_path / "a.safetensors"), *options)

    assert not _CONTROLS.search(written)
    assert "\\u001b" in written
    assert "\\u009b2J" in written
    if options:
        assert tuple(json.loads(written)["class_names"]) == names


def test_an_error_is_shown_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2Ja.safetensors"
    path.write_bytes(b"none")

    written = on_a_terminal("inspect", str(path))

    assert written.startswith("Error: ")
    assert not _CONTROLS.search(written)
