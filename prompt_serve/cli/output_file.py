"""Files and folders that a command writes: checked before any work, saved elsewhere if need be."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from prompt_serve.cli.user_path import DASH, UserPath
from prompt_serve.errors import counted
from prompt_serve.files import atomic_file, check_writable, check_writable_folder

SAVED_ELSEWHERE = "prompt_serve.saved_elsewhere"  # key of click's ``meta``; the exit code is 1


class OutputFile(UserPath):
    """Path of a file to write; one that cannot be written is an error before any work.

    Args:
        in_place: the file is opened, not replaced; it may be a device.
        dash: ``-`` is standard output.
    """

    metavar = "file"  # in help texts

    def __init__(self, *, in_place: bool = False, dash: bool = False) -> None:
        super().__init__(dash=dash)
        self.name = self.metavar
        self._in_place = in_place

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(super().convert(value, param, ctx))
        try:
            if path != DASH:
                self.check(path)
        except OSError as error:
            self.fail(cannot_write(path, error), param, ctx)
        return path

    def check(self, path: Path) -> None:
        """Raise an OSError if the path cannot be written."""
        check_writable(path, in_place=self._in_place)


class OutputFolder(OutputFile):
    """Path of a folder to write.

    Args:
        replaced: the folder is written as a whole.
    """

    metavar = "directory"

    def __init__(self, *, replaced: bool = False) -> None:
        super().__init__()
        self._replaced = replaced

    def check(self, path: Path) -> None:
        check_writable_folder(path, replaced=self._replaced)


class OutputFileOrFolder(OutputFile):
    """Path of a file to write; of a folder if it is one, or has no suffix."""

    metavar = "path"

    def check(self, path: Path) -> None:
        if path.is_dir() or not path.suffix:
            check_writable_folder(path)
        else:
            check_writable(path)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file to write, atomically, or standard output for ``-``; then print its size.

    With ``-`` nothing else is printed.

    Raises:
        UsageError: standard output is a terminal.
    """
    if path == DASH:
        stream = sys.stdout.buffer
        if stream.isatty():
            raise click.UsageError(
                "The file is binary, and standard output is a terminal; add > FILE or | COMMAND."
            )
        yield stream
        stream.flush()
        return
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        yield file
    click.echo(f"{path}: {counted(path.stat().st_size, 'byte')}.")


def cannot_write(path: Path, error: OSError) -> str:
    """Return the sentence that says why a path cannot be written."""
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder; name a file in it."
    return f"{path} cannot be written: {error.strerror or error}."


def save(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a result, into a temporary folder if it cannot be written to ``path``.

    Long work must not be lost because a disk is full at its end. The command continues; its exit
    code is then 1.

    Returns:
        Where the result is.

    Raises:
        OSError: it cannot be written anywhere.
    """
    try:
        write(path)
    except OSError as error:
        try:
            elsewhere = Path(tempfile.mkdtemp(prefix="prompt-serve-")) / path.name
            write(elsewhere)
        except OSError:
            raise error from None
        click.echo(f"Error: {cannot_write(path, error)} It was saved as {elsewhere}.", err=True)
        if context := click.get_current_context(silent=True):
            context.meta[SAVED_ELSEWHERE] = True
        return elsewhere
    return path
