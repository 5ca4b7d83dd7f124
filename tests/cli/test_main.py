"""The ``prompt-serve`` command: help for everything, one line for every error."""

import errno
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import click
import pytest

from prompt_serve import __version__
from prompt_serve.cli.main import COMMANDS, LazyCommand, main
from prompt_serve.client.async_client import DEFAULT_URL
from prompt_serve.errors import (
    ERRORS_BY_CODE,
    BackboneUnavailable,
    BundleInvalid,
    ConfigInvalid,
    DatasetInvalid,
    DependencyMissing,
    DownloadFailed,
    ImageInvalid,
    NotAllowed,
    NotReady,
    PromptFileInvalid,
    PromptServeError,
    ServiceUnreachable,
    TaskNotFound,
    VersionChanged,
)
from tests.cli.conftest import Run


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_and_option_has_help_and_an_example(
    name: str, command: click.Command
) -> None:
    assert command.help
    text = re.sub(r"\s+", " ", f"{command.help} {command.epilog}")
    assert f"prompt-serve {name} " in f"{text} "
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_is_verbose_on_demand(name: str, command: click.Command) -> None:
    (option,) = [parameter for parameter in command.params if "-v" in parameter.opts]

    assert option.opts == ["-v", "--verbose"]


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from prompt_serve.cli.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(*{'torch', 'numpy', 'httpx', 'bentoml'} & set(sys.modules), file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    for name in ("tasks", "classify", "score"):
        assert f"\n  {name} " in done.stdout
    sections = re.findall(r"^(\w+):$", done.stdout, re.MULTILINE)
    assert sections == ["Options", "Learning", "Sharing", "Serving", "Research"]
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("module", ["prompt_serve", "prompt_serve.cli.main"])
def test_the_modules_run_as_the_command(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )

    assert done.stdout == f"prompt-serve, version {__version__}\n"


def test_commands_that_are_not_there_are_not_listed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = LazyCommand("Serving", "prompt_serve.cli.later_than_now", "later", "Not yet.")
    monkeypatch.setitem(COMMANDS, "later", later)

    assert "later" not in run("--help").output
    assert run("later").exit_code == 2
    assert "No such command 'later'" in run("later").output


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The command ``fail``, which raises ``failing.error``."""
    state = SimpleNamespace(error=None)

    @click.command()
    def fail() -> None:
        raise state.error

    module = ModuleType("failing_command")
    module.__spec__ = ModuleSpec("failing_command", None)
    module.fail = fail  # type: ignore[attr-defined]  # modules take what they are given
    monkeypatch.setitem(sys.modules, "failing_command", module)
    monkeypatch.setitem(
        COMMANDS, "fail", LazyCommand("Serving", "failing_command", "fail", "Fails.")
    )
    return state


@pytest.mark.parametrize("kind", ERRORS_BY_CODE.values())
def test_our_own_errors_are_one_line_and_exit_1_or_2(
    run: Run, failing: SimpleNamespace, kind: type[PromptServeError]
) -> None:
    failing.error = kind("There is no bundle in x. Export one: prompt-serve export.")

    result = run("fail")

    assert result.exit_code == (2 if kind.misuse else 1)
    assert result.stderr == "Error: There is no bundle in x. Export one: prompt-serve export.\n"


@pytest.mark.parametrize(
    ("kind", "is_misuse"),
    [
        (BackboneUnavailable, True),
        (BundleInvalid, True),
        (ConfigInvalid, True),
        (DatasetInvalid, True),
        (ImageInvalid, True),
        (PromptFileInvalid, True),
        (TaskNotFound, True),
        (DependencyMissing, False),
        (DownloadFailed, False),
        (NotAllowed, False),
        (NotReady, False),
        (ServiceUnreachable, False),
        (VersionChanged, False),
    ],
)
def test_misuse_is_what_only_another_command_line_or_file_cures(
    kind: type[PromptServeError], is_misuse: bool
) -> None:
    assert kind.misuse is is_misuse


def test_a_missing_extra_says_how_to_install_it(run: Run, failing: SimpleNamespace) -> None:
    failing.error = ModuleNotFoundError("No module named 'torch'", name="torch")

    result = run("fail")

    assert result.exit_code == 1
    assert result.stderr.endswith("need torch: pip install 'prompt-serve[train]'\n")


def test_an_import_error_of_our_own_is_not_reported_as_a_missing_extra(
    run: Run, failing: SimpleNamespace
) -> None:
    failing.error = ImportError("cannot import name 'x'", name="prompt_serve.scoring")

    assert isinstance(run("fail").exception, ImportError)


def test_ctrl_c_is_exit_code_130(run: Run, failing: SimpleNamespace) -> None:
    failing.error = KeyboardInterrupt()

    result = run("fail")

    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"


def test_the_default_address_is_that_of_the_client(run: Run) -> None:
    assert DEFAULT_URL in run("classify", "--help").output


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied.", 1),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.", 1),
        (
            OSError(errno.EIO, "Input/output error", "caf\udce9"),
            r"caf\udce9: Input/output error.",
            1,
        ),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Refused"), "Refused.", 1),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), "a: Is a directory.", 2),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a"), "a: Not a directory.", 2),
        (FileNotFoundError(errno.ENOENT, "No such file", b"caf\xc3\xa9"), "café: No such file.", 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a"), "a: File name too long.", 2),
    ],
    ids=str,
)
def test_an_error_of_the_system_is_one_line(
    run: Run, failing: SimpleNamespace, error: OSError, line: str, code: int
) -> None:
    failing.error = error

    result = run("fail")

    assert result.exit_code == code
    assert result.stderr == f"Error: {line}\n"


def test_a_reader_who_leaves_ends_the_command_quietly(run: Run, failing: SimpleNamespace) -> None:
    failing.error = BrokenPipeError(errno.EPIPE, "Broken pipe")

    result = run("fail")

    assert (result.exit_code, result.output) == (1, "")
