"""Option type of a private key: read before any work, it becomes the function that signs."""

from functools import partial
from typing import Any

import click

from prompt_serve.cli.user_path import UserPath


class Signer(UserPath):
    """Path of a private key; the value is a function from a prompt file to the signed one."""

    name = "key"

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if callable(value):
            return value
        from prompt_serve.signing.keys import read_signing_key
        from prompt_serve.signing.signature import sign

        return partial(sign, key=read_signing_key(super().convert(value, param, ctx)))
