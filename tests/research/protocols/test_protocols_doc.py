"""docs/protocols.md names what there is: every field of a line, every file, every option."""

import dataclasses
import re
from pathlib import Path

import click
import pytest

from prompt_serve.cli.main import main
from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import harmonic_mean

TEXT = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"prompt-serve ((?:[^\n\\]|\\\n)+)", TEXT)


def test_every_field_of_a_line_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", TEXT))
    fields = {field.name for field in dataclasses.fields(Result)} - {"format"}

    assert fields <= explained


def test_the_harmonic_mean_of_the_example() -> None:
    assert "80.32 and 74.73 give 77.42" in TEXT
    assert round(harmonic_mean(80.32, 74.73), 2) == 77.42


@pytest.mark.parametrize("line", [line for line in COMMANDS if " --" in line])
def test_commands_and_options_exist(line: str) -> None:
    words = line.split("#")[0].replace("\\\n", " ").split()
    command: click.Command = main
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    known = {option for parameter in command.params for option in parameter.opts}

    assert {word for word in words if word.startswith("--")} <= known
