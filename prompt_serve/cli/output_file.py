"""Option type of a file that a command writes."""

from pathlib import Path
from typing import Any

import click

from prompt_serve.files import check_writable


class OutputFile(click.Path):
    """Path of a file to write; one that cannot be written is an error before any work."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        try:
            check_writable(path)
        except IsADirectoryError:
            self.fail(f"{path} is a folder; name a file in it.", param, ctx)
        except OSError as error:
            self.fail(f"{path} cannot be written: {error.strerror}.", param, ctx)
        return path
