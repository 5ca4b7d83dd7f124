"""Text lists with one path or URL per line."""

import os
from collections.abc import Iterator
from pathlib import Path

from prompt_serve.errors import DatasetInvalid
from prompt_serve.text_files import decode_text, is_utf8, local_path, not_utf8


def listed_paths(data: bytes, path: Path) -> Iterator[str]:
    """Yield the paths and URLs of a list.

    Args:
        data: content of the list; see ``decode_text``, ``local_path``.
        path: of the list, for errors.

    Raises:
        DatasetInvalid: the list is not UTF-8.
    """
    text = decode_text(data)
    lines = [line.strip(" \t\r") for line in text.split("\n")]
    files = {line: _path_or_url(line) for line in lines if line}
    # What is not UTF-8 in a list may be the name of a file, in the encoding of that file's name.
    if not all(is_utf8(line) or os.path.lexists(file) for line, file in files.items()):
        raise DatasetInvalid(not_utf8(path, text))
    yield from files.values()


def _path_or_url(line: str) -> str:
    """Return a line as it is if it is a URL or names a file, else the path that is meant."""
    if "://" in line:
        return line
    name = os.fsdecode(line.encode("utf-8", "surrogateescape"))
    return name if os.path.lexists(name) else str(local_path(line))
