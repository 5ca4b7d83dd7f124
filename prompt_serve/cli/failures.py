"""Errors of commands: one line on standard error, and the exit code.

    0    success
    1    something failed while the command ran: no service, a full disk, an image that is damaged
    2    the command was called wrongly: an option, a name, a setting or a file is wrong or missing
    130  interrupted (Ctrl-C)

An error that lists several faults has one further line per fault.
"""

import errno
import os
import re

import click

from prompt_serve.errors import DependencyMissing, PromptServeError, did_you_mean

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

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
    "openvino": ("openvino", "The engine openvino and bf16 need"),
    "nncf": ("openvino-int8", "An int8 graph for OpenVINO needs"),
    "pyarrow": ("tables", "Parquet tables need"),
    "fsspec": ("s3", "URLs of images need"),
    "huggingface_hub": ("hub", "The Hugging Face Hub needs"),
    "mlflow": ("mlflow", "MLflow needs"),
    "tensorboardX": ("tensorboard", "TensorBoard needs"),
}

# Click names its types where a reader expects numbers: "'x' is not a valid integer range".
_NUMBER_TYPE = re.compile(r"is not a valid (?:(integer)|float)(?: range)?\.?$")

# Errors of the operating system about a path that was given, not about the disk behind it.
_WRONG_PATHS = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


class Misuse(click.ClickException):
    """The command was called wrongly."""

    exit_code = 2


def failure_of(error: Exception) -> click.ClickException | None:
    """Return what to print for an error, with its exit code; None for a bug of ours."""
    if isinstance(error, click.UsageError):
        # Called without arguments, a group prints its help.
        return (
            error
            if isinstance(error, click.exceptions.NoArgsIsHelpError)
            else Misuse(_usage_line(error))
        )
    if isinstance(error, click.ClickException):
        return error
    if isinstance(error, ImportError):
        missing = dependency_missing(error)
        return None if missing is None else failure_of(missing)
    if isinstance(error, PromptServeError):
        return Misuse(str(error)) if error.misuse else click.ClickException(str(error))
    if isinstance(error, OSError) and error.errno not in (None, errno.EPIPE):
        # Click ends quietly on a closed pipe.
        kind = Misuse if error.errno in _WRONG_PATHS else click.ClickException
        return kind(os_error_line(error))
    return None


def dependency_missing(error: ImportError) -> DependencyMissing | None:
    """Return an error that says which extra to install; None if the module is of no extra."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    extra, need = EXTRAS[package]
    return DependencyMissing(
        f"{need} {package}: pip install 'prompt-serve[{extra}]'", package=package, extra=extra
    )


def os_error_line(error: OSError) -> str:
    """Return the file and the reason of an error of the operating system."""
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}." if error.filename else f"{reason}."


def _usage_line(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split())
    message = _NUMBER_TYPE.sub(
        lambda match: f"is not a {'whole ' if match[1] else ''}number.", message
    )
    context = error.ctx
    if context is None:
        return message
    if isinstance(error, click.NoSuchCommand) and not error.possibilities:
        group = context.command
        names = group.list_commands(context) if isinstance(group, click.Group) else ()
        message += did_you_mean(error.command_name, names)
    end = "" if message.endswith((".", "?", "?)")) else "."
    return f"{message}{end} See {context.command_path} --help."
