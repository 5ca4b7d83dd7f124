"""Option type of paths that a command reads."""

import sys
from pathlib import Path
from typing import Any

import click

from prompt_serve.text_files import expand_user

DASH = Path("-")  # standard input or output


class UserPath(click.Path):
    """Path as a user gives it, on the command line or in an environment variable.

    ``~`` is expanded, also where the shell does not do it: ``--out=~/pets.safetensors``.

    Args:
        path_type: type of the value; ``str`` where it may also be a URL.
        exists: a path that does not exist is an error.
        dir_okay: a folder is accepted.
        dash: ``-`` is standard input or output (``DASH``); a file of that name is ``./-``.
    """

    def __init__(
        self,
        *,
        path_type: type[Path] | type[str] = Path,
        exists: bool = False,
        dir_okay: bool = True,
        dash: bool = False,
    ) -> None:
        super().__init__(path_type=path_type, exists=exists, dir_okay=dir_okay, allow_dash=dash)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.startswith("~"):
            value = str(expand_user(value))
        if value == "-" and not self.allow_dash:
            self.fail("- (standard input or output) is not possible here; name a file.", param, ctx)
        if isinstance(value, str) and value != "-" and Path(value) == DASH:
            value = str(DASH.absolute())  # Path drops the ./ of a file named -
        return super().convert(value, param, ctx)


def read_input(path: Path) -> bytes:
    """Return the content of a file, or of standard input for ``-``."""
    if path == DASH:
        return sys.stdin.buffer.read()
    return path.read_bytes()
