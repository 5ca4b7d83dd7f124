"""Every ``prompt-serve`` command that a page names exists, with the options it names."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from prompt_serve.cli.main import COMMANDS, main
from prompt_serve.errors import PromptServeError
from tests.docs.pages import PAGES, all_blocks
from tests.service.process import ROOT

_COMMAND = re.compile(r"^ *(?:\w+=\S+ )?prompt-serve ([a-z][^|;#&\n]*)", re.MULTILINE)
# Texts in docs/prompt-file.md: what seeds a probe, and the beginning of a signed message.
_NOT_COMMANDS = {"probe 1", "prompt file signature 1"}


def named_commands(page: Path) -> Iterator[str]:
    """Yield the commands of code blocks and of inline code, without ``prompt-serve``."""
    for block in all_blocks(page):
        text = re.sub(r"\\\n\s*", " ", block.text)
        yield from (found.strip() for found in _COMMAND.findall(text))
    for code in re.findall(r"(?<!`)`([a-z][^`\n]*)`", page.read_text()):
        if code.startswith("prompt-serve "):
            yield from (found.strip() for found in _COMMAND.findall(code))
        elif code.split(" ")[0] in COMMANDS:
            yield code


def test_commands_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nprompt-serve train a \\\n  --out b  # x\nA=b prompt-serve score c | cat --x\n```\n"
        "prompt-serve in prose, `train T --x`, `prompt-serve keys list`, `trainer --x`"
    )

    found = list(named_commands(page))
    assert found == ["train a  --out b", "score c", "train T --x", "keys list"]


@pytest.mark.parametrize(
    "line",
    sorted(
        {
            line
            for page in (*PAGES, ROOT / "CONTRIBUTING.md")
            for line in named_commands(page)
            if line not in _NOT_COMMANDS
        }
    ),
)
def test_commands_and_their_options_exist(line: str) -> None:
    words = shlex.split(line)
    command: click.Command = main
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z-]+", words[0]):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None, f"no command: prompt-serve {line}"
        command = found
    # Files of the pages do not exist here, and some lines are shortened; --help exits.
    with contextlib.suppress(click.UsageError, click.exceptions.Exit, PromptServeError):
        try:
            command.make_context("", words)
        except click.NoSuchOption as error:
            pytest.fail(f"prompt-serve {line}: {error.format_message()}")


@pytest.mark.parametrize("line", ["train x --shot 16", "tasks pin x --of", "keys list --role a"])
def test_an_unknown_option_is_found(line: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="No such option"):
        test_commands_and_their_options_exist(line)
