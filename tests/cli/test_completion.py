"""Completion: in a real bash, and by the protocols of the other shells."""

import functools
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from prompt_serve.cli.completion import ARGUMENTS, OPTIONS, VARIABLE
from prompt_serve.cli.main import main
from prompt_serve.training.methods import METHODS
from tests.cli.test_main import commands
from tests.client.fake_service import FakeService

PROGRAM = shutil.which("prompt-serve", path=str(Path(sys.executable).parent))
NOWHERE = {"PROMPT_SERVE_URL": "http://127.0.0.1:9"}  # a port where nothing listens

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="the command is not installed")

IN_BASH = """
eval "$SCRIPT"
complete -p prompt-serve >&2
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_prompt_serve_completion prompt-serve
printf '%s\\n' "${COMPREPLY[@]}"
"""


@functools.cache
def script(shell: str) -> str:
    """Return what the installed command prints for the configuration of a shell."""
    assert PROGRAM is not None
    return subprocess.run(
        [PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, VARIABLE: f"{shell}_source"},
        check=True,
    ).stdout


def in_bash(*words: str, **environment: str) -> list[str]:
    """Return what bash offers for the last of some words."""
    done = subprocess.run(
        ["bash", "--norc", "-c", IN_BASH, "bash", "prompt-serve", *words],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SCRIPT": script("bash"),
            **NOWHERE,
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ("complete -o nosort -F _prompt_serve_completion prompt-serve\n")
    return done.stdout.split()


OFFERED = [
    (["tr"], ["train", "train-many"]),
    (["re"], ["registry", "reproduce", "report"]),
    (["tasks", "do"], ["download"]),
    (["keys", "re"], ["revoke"]),
    (["train", "photos", "--see"], ["--seeds", "--seed"]),
    (["score", "--conc"], ["--concurrency"]),
    (["train", "photos", "--method", "q"], ["qcoop", "qmaple"]),
    (["train", "photos", "--method", "au"], ["auto"]),
    (["methods", "pro"], ["prompt", "prograd", "promptsrc"][1:]),
    (["protocol", "few-shot", "x", "--methods", "coop,ma"], ["coop,maple"]),
    (["protocol", "few-shot", "x", "--methods", "te"], ["text"]),
    (["protocol", "dom"], ["domain-generalization"]),
    (["export", "emb"], ["embedded", "embedded-vit"]),
    (["evaluate", "x", "y", "--backbone", "embedded-"], ["embedded-vit"]),
    (["data", "check", "euro"], ["eurosat"]),
    (["train", "x", "--on-bad-image", "s"], ["skip"]),
    (["keys", "create", "ci", "--role", ""], ["infer", "admin"]),
    (["xyzzy", "x"], []),
    (["train", "x", "--method", "xyzzy", "--xyzzy"], []),
]


@pytest.mark.parametrize(("words", "offered"), [*OFFERED[::4], OFFERED[-2]], ids=" ".join)
def test_bash_offers_commands_options_methods_and_names(
    words: list[str], offered: list[str]
) -> None:
    assert sorted(in_bash(*words)) == sorted(offered)


@pytest.mark.parametrize(
    "words",
    [
        ["tasks", "show", "pe"],
        ["tasks", "download", "pe"],
        ["tasks", "alias", "prod", "pe"],
        ["classify", "cat.jpg", "--task", "pe"],
        ["score", "photos", "--out", "t.csv", "--task", "pe"],
    ],
)
def test_bash_offers_the_tasks_of_the_service(service: FakeService, words: list[str]) -> None:
    service.behavior.tasks |= {"petals": b"", "cars": b""}

    assert in_bash(*words, PROMPT_SERVE_URL=service.url) == ["petals", "pets"]
    assert in_bash(words[0], "--url", service.url, *words[1:]) in ([], ["petals", "pets"])


@pytest.mark.parametrize("fault", ["nobody listens", "slow", "error"])
def test_without_an_answer_of_the_service_nothing_is_offered_soon(
    service: FakeService, fault: str
) -> None:
    if fault == "slow":
        service.behavior.delay_s = lambda: 20.0
    url = "http://127.0.0.1:9" if fault == "nobody listens" else service.url
    if fault == "error":
        url += "/nowhere"

    started = time.monotonic()
    assert in_bash("tasks", "show", "pe", PROMPT_SERVE_URL=url) == []
    assert time.monotonic() - started < 10  # mostly the start of Python, on a busy machine


def answered(shell: str, line: str) -> str:
    """Return the answer of the command, in this process, to a shell that completes the last word
    of a line."""
    words = line.split(" ")
    fish = {"COMP_WORDS": line, "COMP_CWORD": words[-1]}
    others = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    asked = {**NOWHERE, **(fish if shell == "fish" else others), VARIABLE: f"{shell}_complete"}
    try:
        done = CliRunner(env=asked).invoke(main, prog_name="prompt-serve")
    finally:
        logging.disable(logging.NOTSET)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(("words", "offered"), OFFERED, ids=" ".join)
def test_commands_options_methods_and_names_are_offered(
    words: list[str], offered: list[str]
) -> None:
    names = answered("bash", " ".join(["prompt-serve", *words])).split()

    assert sorted(names) == sorted(f"plain,{value}" for value in offered)


@pytest.mark.parametrize("shell", ["zsh", "fish", "bash"])
@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("prompt-serve tra", "train"),
        ("prompt-serve methods maple", "maple"),
        ("prompt-serve score --mix", "--mix-versions"),
        ("prompt-serve export embedded-", "embedded-vit"),
        ("prompt-serve reproduce base", "base-to-new"),
    ],
)
def test_other_shells_get_the_same_names(shell: str, line: str, value: str) -> None:
    assert value in answered(shell, line).replace("\t", " ").replace(",", " ").split()


@pytest.mark.parametrize("shell", ["zsh", "fish", "bash"])
@pytest.mark.parametrize(
    "line",
    [
        "prompt-serve train ph",
        "prompt-serve inspect pe",
        "prompt-serve evaluate x.safetensors ph",
        "prompt-serve train x --config co",
        "prompt-serve export models/vi",
    ],
)
def test_file_names_are_left_to_the_shell(shell: str, line: str) -> None:
    assert answered(shell, line).split("\n")[0].replace("\t", ",").startswith("file")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str) -> None:
    assert f"{VARIABLE}={shell}_complete" in script(shell)


def test_the_tables_name_what_there_is() -> None:
    flags, arguments = set(), set()
    for path, command in commands():
        flags |= {flag for parameter in command.params for flag in parameter.opts}
        arguments |= {f"{path} {parameter.name}" for parameter in command.params}

    assert OPTIONS.keys() <= flags
    assert ARGUMENTS.keys() <= arguments
    assert set(METHODS) <= set(METHODS.names())
