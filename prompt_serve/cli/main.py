"""The ``prompt-serve`` command: loads its sub-commands and prints errors as one line.

A command's module is imported when the command is used, so ``prompt-serve --help`` is fast and
works without the optional extras.
"""

import codecs
import errno
import importlib
import importlib.util
import io
import os
import sys
from dataclasses import dataclass
from typing import Any

import click

from prompt_serve import __version__
from prompt_serve.cli.output_file import SAVED_ELSEWHERE
from prompt_serve.errors import DependencyMissing, PromptServeError
from prompt_serve.service.env_files import load_env_files

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


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

# Optional module -> extra of the package that installs it, and the feature that needs it.
EXTRAS: dict[str, tuple[str, str]] = {
    "torch": ("train", "Training and export need"),
    "open_clip": ("train", "Training and export need"),
    "matplotlib": ("research", "Plots need"),
    "resvg_py": ("research", "Rendering IconBench needs"),
    "jinja2": ("research", "The report needs"),
    "scipy": ("research", "Statistics need"),
    "onnx": ("train", "Export needs"),
    "onnxscript": ("train", "Export needs"),
    "onnxruntime": ("serve", "Running an exported backbone needs"),
    "tokenizers": ("serve", "Reading class names needs"),
    "ftfy": ("serve", "Reading class names needs"),
    "bentoml": ("serve", "The service needs"),
    "prometheus_client": ("serve", "The service needs"),
    "fastapi": ("serve", "The service needs"),
    "sqlalchemy": ("serve", "The service needs"),
    "pyarrow": ("tables", "Parquet tables need"),
}


def dependency_missing(error: ImportError) -> DependencyMissing | None:
    """Return an error that says which extra to install; None if the module is of no extra."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    extra, need = EXTRAS[package]
    return DependencyMissing(
        f"{need} {package}: pip install 'prompt-serve[{extra}]'", package=package, extra=extra
    )


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


def os_error_line(error: OSError) -> str:
    """Return the file and the reason of an error of the operating system."""
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}." if error.filename else f"{reason}."


class LazyGroup(click.Group):
    """Group that imports a command when it is used, and prints errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, lazy in COMMANDS.items() if importlib.util.find_spec(lazy.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        lazy = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(lazy.module), lazy.name)
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
        return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            load_env_files()
            result = super().invoke(ctx)
        except PromptServeError as error:
            raise click.ClickException(str(error)) from error
        except ImportError as error:
            missing = dependency_missing(error)
            if missing is None:
                raise
            raise click.ClickException(str(missing)) from error
        except OSError as error:
            if error.errno in (None, errno.EPIPE):  # click ends quietly on a closed pipe
                raise
            raise click.ClickException(os_error_line(error)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        if ctx.meta.get(SAVED_ELSEWHERE):
            raise click.exceptions.Exit(1)
        return result


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
