"""The ``prompt-serve`` command: loads its sub-commands and prints errors as one line.

A command's module is imported when the command is used, so ``prompt-serve --help`` is fast and
works without the optional extras.
"""

import codecs
import contextlib
import importlib
import importlib.util
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from prompt_serve import __version__
from prompt_serve.cli import completion
from prompt_serve.cli.failures import EXIT_INTERRUPTED, failure_of
from prompt_serve.cli.output_file import SAVED_ELSEWHERE
from prompt_serve.cli.verbose import print_traceback, verbose_option
from prompt_serve.service.env_files import load_env_files


@dataclass(frozen=True)
class LazyCommand:
    """Command ``name`` of ``module``, with its section and line in the list of commands."""

    section: str
    module: str
    name: str
    help: str


COMMANDS: dict[str, LazyCommand] = {
    "train": LazyCommand(
        "Learning",
        "prompt_serve.cli.learning.train",
        "train",
        "Learn a prompt from labeled images.",
    ),
    "train-many": LazyCommand(
        "Learning",
        "prompt_serve.cli.learning.many.command",
        "train_many",
        "Train and compare many prompts.",
    ),
    "methods": LazyCommand(
        "Learning",
        "prompt_serve.cli.learning.methods",
        "methods",
        "List the learning methods.",
    ),
    "evaluate": LazyCommand(
        "Learning",
        "prompt_serve.cli.learning.evaluate",
        "evaluate",
        "Evaluate a prompt file on labeled images.",
    ),
    "inspect": LazyCommand(
        "Learning",
        "prompt_serve.cli.learning.inspect",
        "inspect",
        "Show the contents of a prompt file.",
    ),
    "export": LazyCommand(
        "Learning",
        "prompt_serve.cli.learning.export",
        "export",
        "Export a backbone to ONNX.",
    ),
    "push": LazyCommand(
        "Sharing",
        "prompt_serve.cli.hub",
        "push",
        "Push a prompt file to the Hugging Face Hub.",
    ),
    "pull": LazyCommand(
        "Sharing",
        "prompt_serve.cli.hub",
        "pull",
        "Pull a prompt file from the Hugging Face Hub.",
    ),
    "cache": LazyCommand(
        "Learning",
        "prompt_serve.cli.cache",
        "cache",
        "Show and clear the caches.",
    ),
    "predict": LazyCommand(
        "Without a service",
        "prompt_serve.cli.serving.predict",
        "predict",
        "Classify images in this process.",
    ),
    "serve": LazyCommand(
        "Serving",
        "prompt_serve.cli.serving.serve",
        "serve",
        "Start the service.",
    ),
    "export-task": LazyCommand(
        "Learning",
        "prompt_serve.cli.serving.export_task",
        "export_task",
        "Write a task as one ONNX file.",
    ),
    "tasks": LazyCommand(
        "Serving",
        "prompt_serve.cli.serving.tasks",
        "tasks",
        "List, upload and edit the tasks of a service.",
    ),
    "classify": LazyCommand(
        "Serving",
        "prompt_serve.cli.serving.classify",
        "classify",
        "Classify a few images.",
    ),
    "score": LazyCommand(
        "Serving",
        "prompt_serve.cli.serving.score",
        "score",
        "Score many images and write a table.",
    ),
    "registry": LazyCommand(
        "Serving",
        "prompt_serve.cli.serving.registry",
        "registry",
        "Export, import and migrate the task registry.",
    ),
    "keys": LazyCommand(
        "Serving",
        "prompt_serve.cli.serving.keys",
        "keys",
        "Create, list and revoke API keys.",
    ),
    "keygen": LazyCommand(
        "Serving",
        "prompt_serve.cli.signing.commands",
        "keygen",
        "Make a key pair that signs prompt files.",
    ),
    "sign": LazyCommand(
        "Serving",
        "prompt_serve.cli.signing.commands",
        "sign",
        "Sign prompt files.",
    ),
    "verify": LazyCommand(
        "Serving",
        "prompt_serve.cli.signing.commands",
        "verify",
        "Check the signatures of prompt files.",
    ),
    "doctor": LazyCommand(
        "Serving",
        "prompt_serve.cli.doctor.command",
        "doctor",
        "Show versions, devices and service, and what is wrong.",
    ),
    "baselines": LazyCommand(
        "Research",
        "prompt_serve.cli.research.baselines",
        "baselines",
        "Evaluate zero-shot and adapter baselines.",
    ),
    "protocol": LazyCommand(
        "Research",
        "prompt_serve.cli.research.protocol",
        "protocol",
        "Run the papers' protocols on your own datasets.",
    ),
    "reproduce": LazyCommand(
        "Research",
        "prompt_serve.cli.research.reproduce",
        "reproduce",
        "Reproduce the papers' benchmarks.",
    ),
    "report": LazyCommand(
        "Research",
        "prompt_serve.cli.research.report",
        "report",
        "Write an HTML report about runs.",
    ),
    "data": LazyCommand(
        "Research",
        "prompt_serve.cli.research.data",
        "data",
        "List, check and download benchmark datasets.",
    ),
}


def escape(error: UnicodeError) -> tuple[str, int]:
    r"""Return the characters that a terminal cannot show as ``\uXXXX``; a codec error handler.

    In a JSON document these are the characters themselves.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    escaped = "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
    return escaped, error.end


def escape_what_cannot_be_shown() -> None:
    """Make standard output and error take any text, also file names that are not UTF-8.

    An error handler of the user's (``PYTHONIOENCODING=latin-1:replace``) is kept.
    """
    codecs.register_error("prompt-serve-escape", escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in (
            "strict",
            "surrogateescape",
            "backslashreplace",
        ):
            stream.reconfigure(errors="prompt-serve-escape")


# Characters that a terminal obeys, except the end of a line and the tabulator.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What a progress bar writes: back to the beginning of its line, or to the lines above.
_MOVE = re.compile(r"\n*(?:\x1b\[A)*")


def without_controls(text: str) -> str:
    r"""Return a text with its control characters as ``\uXXXX``.

    Names in files of others could otherwise move the cursor, change the title of a window, or hide
    what stands before them. In a JSON document these are the characters themselves.
    """
    if _MOVE.fullmatch(text):
        return text
    begin = text[:1] if text.startswith("\r") else ""
    return begin + _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text[len(begin) :])


def escape_controls() -> None:
    """Make standard output and error take texts of others (see ``without_controls``)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream.write, _Escaping):
            stream.write = _Escaping(stream.write)  # type: ignore[method-assign]  # see the class


class _Escaping:
    """The method ``write`` of a text stream that escapes; the stream itself stays in its place."""

    def __init__(self, write: Callable[[str], int]) -> None:
        self._write = write

    def __call__(self, text: str) -> int:
        return self._write(without_controls(text))


class LazyGroup(click.Group):
    """Group that imports a command when it is used, and prints errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, lazy in COMMANDS.items() if importlib.util.find_spec(lazy.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        lazy = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(lazy.module), lazy.name)
        _equip(command, cmd_name, ctx)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        for section in dict.fromkeys(COMMANDS[name].section for name in names):
            with formatter.section(section):
                formatter.write_dl(
                    [
                        (name, COMMANDS[name].help)
                        for name in names
                        if COMMANDS[name].section == section
                    ]
                )

    def main(self, *args: Any, **options: Any) -> Any:
        escape_what_cannot_be_shown()
        escape_controls()
        if completion.VARIABLE in os.environ:
            logging.disable()  # nothing but the answer may reach the terminal
            with contextlib.suppress(Exception):
                return super().main(*args, **options)
            sys.exit(1)
        return super().main(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*args, **options)
        except (click.UsageError, OSError) as error:  # help, too, may meet a full disk
            raise failure_of(error) or error from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            load_env_files()
            result = super().invoke(ctx)
        except KeyboardInterrupt as error:
            print_traceback(ctx, error)
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            print_traceback(ctx, error)
            raise failure from error
        if ctx.meta.get(SAVED_ELSEWHERE):
            raise click.exceptions.Exit(1)
        return result


def _equip(command: click.Command, path: str, ctx: click.Context) -> None:
    """Add what all commands have, and those below them: ``--verbose``, and completion."""
    if not any(parameter.name == "verbose" for parameter in command.params):
        command.params.append(verbose_option())
    completion.add_completion(path, command)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            if (below := command.get_command(ctx, name)) is not None:
                _equip(below, f"{path} {name}", ctx)


@click.group(
    name="prompt-serve",
    cls=LazyGroup,
    params=[verbose_option()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="prompt-serve")
def main() -> None:
    """Learn compact prompts for a frozen CLIP, export it to ONNX, and serve thousands of tasks.

    \b
    prompt-serve train photos/ --method dip --shots 16 --out pets.safetensors
    prompt-serve tasks upload pets.safetensors
    prompt-serve score photos/ --task pets --out scores.parquet
    """


if __name__ == "__main__":
    main()
