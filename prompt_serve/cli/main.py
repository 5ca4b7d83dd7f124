"""The ``prompt-serve`` command: finds the sub-commands and says what went wrong in one line.

A command's module is imported when that command is asked for, so ``prompt-serve --help`` is quick
and works whichever optional parts are installed.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import click

from prompt_serve import __version__
from prompt_serve.errors import DependencyMissing, PromptServeError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class LazyCommand:
    """A command: the object ``name`` of ``module``, with its line in the list of commands."""

    module: str
    name: str
    help: str


COMMANDS: dict[str, LazyCommand] = {
    "train": LazyCommand(
        "prompt_serve.cli.learning.train", "train", "Learn a prompt from labeled images."
    ),
    "methods": LazyCommand(
        "prompt_serve.cli.learning.methods", "methods", "List what can be learned."
    ),
    "evaluate": LazyCommand(
        "prompt_serve.cli.learning.evaluate",
        "evaluate",
        "Measure a prompt file on labeled images.",
    ),
    "baselines": LazyCommand(
        "prompt_serve.cli.research.baselines",
        "baselines",
        "Evaluate zero-shot and adapter baselines.",
    ),
    "data": LazyCommand(
        "prompt_serve.cli.research.data", "data", "List, check and build benchmark datasets."
    ),
    "protocol": LazyCommand(
        "prompt_serve.cli.research.protocol",
        "protocol",
        "Evaluate methods on your datasets by the papers' protocols.",
    ),
    "reproduce": LazyCommand(
        "prompt_serve.cli.research.reproduce", "reproduce", "Reproduce the papers' benchmarks."
    ),
    "report": LazyCommand(
        "prompt_serve.cli.research.report", "report", "Write the results of runs to one HTML page."
    ),
    "inspect": LazyCommand(
        "prompt_serve.cli.learning.inspect", "inspect", "Show what a file holds."
    ),
    "export": LazyCommand(
        "prompt_serve.cli.learning.export", "export", "Export a backbone to ONNX."
    ),
    "tasks": LazyCommand(
        "prompt_serve.cli.serving.tasks", "tasks", "List and change a service's tasks."
    ),
    "registry": LazyCommand(
        "prompt_serve.cli.serving.registry",
        "registry",
        "Export, import and upgrade all tasks at once.",
    ),
    "keys": LazyCommand(
        "prompt_serve.cli.serving.keys", "keys", "Make and revoke a service's API keys."
    ),
    "classify": LazyCommand(
        "prompt_serve.cli.serving.classify", "classify", "Ask a running service about a few images."
    ),
    "score": LazyCommand(
        "prompt_serve.cli.serving.score", "score", "Score a folder of images into a table."
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
    """Say how to get the optional part whose import failed; None where it is no such part."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    extra, need = EXTRAS[package]
    return DependencyMissing(
        f"{need} {package}: pip install 'prompt-serve[{extra}]'", package=package, extra=extra
    )


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for, and shows errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, lazy in COMMANDS.items() if importlib.util.find_spec(lazy.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        lazy = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(lazy.module), lazy.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PromptServeError as error:
            raise click.ClickException(str(error)) from error
        except ImportError as error:
            missing = dependency_missing(error)
            if missing is None:
                raise
            raise click.ClickException(str(missing)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prompt-serve")
def main() -> None:
    """Learn compact prompts for a frozen CLIP, export them, serve thousands at once.

    \b
    prompt-serve train photos/ --method dip --shots 16 --out pets.safetensors
    prompt-serve tasks upload pets.safetensors
    prompt-serve score photos/ --task pets --out scores.parquet
    """


if __name__ == "__main__":
    main()
