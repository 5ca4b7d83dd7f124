"""Option type of paths that a command reads."""

from pathlib import Path
from typing import Any

import click

from prompt_serve.text_files import expand_user


class UserPath(click.Path):
    """Path as a user gives it, on the command line or in an environment variable.

    ``~`` is expanded, also where the shell does not do it: ``--out=~/pets.safetensors``.

    Args:
        path_type: type of the value; ``str`` where it may also be a URL.
        exists: a path that does not exist is an error.
        dir_okay: a folder is accepted.
    """

    def __init__(
        self,
        *,
        path_type: type[Path] | type[str] = Path,
        exists: bool = False,
        dir_okay: bool = True,
    ) -> None:
        super().__init__(path_type=path_type, exists=exists, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.startswith("~"):
            value = str(expand_user(value))
        return super().convert(value, param, ctx)
