"""Expand folders, files and text lists from the command line into image paths."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_serve.errors import DatasetInvalid
from prompt_serve.text_files import is_utf8, local_path, not_utf8, read_text

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
)
LIST_SUFFIX = ".txt"


def image_paths(inputs: Iterable[str]) -> list[str]:
    """Return the images of folders, files and text lists, without duplicates.

    Folders are searched recursively by suffix, in the order of the names, without hidden files
    and folders. A text list (.txt) has one path per line (see ``read_text``, ``local_path``). A
    file that is named itself is taken whatever its suffix.

    Raises:
        DatasetInvalid: an input does not exist, a list is not UTF-8, or there are no images.
    """
    inputs = list(inputs)
    missing = [name for name in inputs if not Path(name).exists()]
    if missing:
        raise DatasetInvalid("No such file or folder:", missing)
    paths = list(dict.fromkeys(path for name in inputs for path in _images_of(name)))
    if not paths:
        raise DatasetInvalid(
            f"No images in {', '.join(inputs)}. Searched for files with the suffixes "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return paths


def _images_of(name: str) -> Iterator[str]:
    if Path(name).is_dir():
        yield from _images_in_folder(name)
    elif name.lower().endswith(LIST_SUFFIX):
        yield from _listed(Path(name))
    else:
        yield name


def _listed(path: Path) -> Iterator[str]:
    text = read_text(path)
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


def _images_in_folder(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield str(Path(parent, name))
