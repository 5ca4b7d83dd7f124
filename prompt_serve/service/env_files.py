"""Variables ``PROMPT_SERVE_*`` from secret files and from a ``.env`` file.

The environment wins over secret files, and these win over ``.env``. Other variables of the files
are ignored: they belong to other programs.
"""

import io
import os
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from prompt_serve.errors import ConfigInvalid
from prompt_serve.text_files import expand_user, is_utf8, read_text

PREFIX = "PROMPT_SERVE_"
ENV_FILE_VARIABLE = "PROMPT_SERVE_ENV_FILE"
SECRETS_DIR_VARIABLE = "PROMPT_SERVE_SECRETS_DIR"
_DEFAULT_FILE = ".env"


def load_env_files(environment: MutableMapping[str, str] | None = None) -> None:
    """Add the variables of the files to the environment, unless it has them already.

    They become part of ``os.environ``, so that processes started by this one have the same.

    Raises:
        ConfigInvalid: a file or folder that was named cannot be read, or a line is invalid.
    """
    environment = os.environ if environment is None else environment
    of_file = dict(_env_file(environment))
    folder = environment.get(SECRETS_DIR_VARIABLE, of_file.get(SECRETS_DIR_VARIABLE))
    secrets = dict(_secret_files(expand_user(folder))) if folder else {}
    for name, value in {**of_file, **secrets}.items():
        environment.setdefault(name, value)


def _env_file(environment: MutableMapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables of the file that the environment names, by default ``.env``."""
    named = environment.get(ENV_FILE_VARIABLE)
    path = expand_user(_DEFAULT_FILE if named is None else named)
    # Path.is_file raises an error in a folder that may not be searched.
    if named == "" or (named is None and not os.path.isfile(path)):  # noqa: PTH113
        return
    try:
        text = read_text(path)
    except OSError as error:
        what = f"{path} in this folder" if named is None else f"{ENV_FILE_VARIABLE}={named}"
        raise ConfigInvalid(
            f"{what} cannot be read: {error.strerror}. {ENV_FILE_VARIABLE} names another file; "
            f"empty, none is read."
        ) from error
    if PREFIX in text:
        yield from _variables(path, text)


def _variables(path: Path, text: str) -> Iterator[tuple[str, str]]:
    from dotenv.parser import parse_stream  # only here: most commands find no such file

    for binding in parse_stream(io.StringIO(text)):
        text = binding.original.string.lstrip()
        name, value = binding.key, binding.value
        if not (name or text.removeprefix("export ").lstrip()).startswith(PREFIX):
            continue
        if binding.error or name is None or value is None:
            blank_lines = binding.original.string[: -len(text)].count("\n")
            line = binding.original.line + blank_lines
            raise ConfigInvalid(
                f"{path}, line {line}: expected {PREFIX}NAME=value, got {_shown(text)}"
            )
        yield name, _checked(value, f"{path}: {name}")


def _shown(line: str) -> str:
    """Return the beginning of a line, without what may be a secret."""
    found = re.match(r"(export\s+)?\w+", line)
    assert found is not None  # noqa: S101 (it begins with the prefix)
    return f"{found.group()} ..."


def _secret_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the variables of a folder with one file per variable, as Docker and Kubernetes mount
    them: the name in either case, the content without surrounding white space."""
    try:
        for path in sorted(folder.iterdir()):
            name = path.name.upper()
            if name.startswith(PREFIX) and path.is_file():
                yield name, _checked(read_text(path).strip(), str(path))
    except OSError as error:
        raise ConfigInvalid(
            f"{error.filename} cannot be read: {error.strerror}. {SECRETS_DIR_VARIABLE} names a "
            f"folder with one file per variable, such as prompt_serve_database_url."
        ) from error


def _checked(value: str, where: str) -> str:
    if "\0" in value or not is_utf8(value):
        raise ConfigInvalid(f"{where} has a value that is not UTF-8 text.")
    return value
