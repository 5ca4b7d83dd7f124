"""Expand folders, files and text lists from the command line into image paths."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import click

from prompt_serve.cli.user_path import DASH, read_input
from prompt_serve.errors import DatasetInvalid
from prompt_serve.image_folders import HEIF_SUFFIXES, IMAGE_SUFFIXES, Ignored, find_images
from prompt_serve.text_files import decode_text, is_utf8, local_path, not_utf8

# The service decodes: whether it reads HEIC is not known here.
SENT_SUFFIXES = IMAGE_SUFFIXES | HEIF_SUFFIXES
LIST_SUFFIX = ".txt"


def image_paths(inputs: Iterable[str]) -> list[str]:
    """Return the images of folders, files and text lists, without duplicates.

    Folders are searched recursively by suffix, in the order of the names; what is ignored there is
    told on stderr. A text list (.txt, or ``-`` for standard input) has one path per line (see
    ``decode_text``, ``local_path``). A file that is named itself is taken whatever its suffix.

    Raises:
        DatasetInvalid: an input does not exist, a list is not UTF-8, or there are no images.
    """
    inputs = list(inputs)
    missing = [name for name in inputs if name != str(DASH) and not Path(name).exists()]
    if missing:
        raise DatasetInvalid("No such file or folder:", missing)
    ignored = Ignored()
    paths = list(dict.fromkeys(path for name in inputs for path in _images_of(name, ignored)))
    report_ignored(ignored)
    if not paths:
        raise DatasetInvalid(
            f"No images in {', '.join(inputs)}. Searched for files with the suffixes "
            f"{', '.join(sorted(SENT_SUFFIXES))}."
        )
    return paths


def images_in_folders(inputs: Sequence[str]) -> list[str]:
    """Return the inputs with each folder replaced by its images, as ``image_paths`` does.

    Raises:
        DatasetInvalid: an input is neither a file or folder nor a URL.
    """
    elsewhere = ("-", "data:")  # standard input, or the image itself
    missing = [
        name
        for name in inputs
        if "://" not in name and not name.startswith(elsewhere) and not os.path.lexists(name)
    ]
    if missing:
        raise DatasetInvalid("No such file or folder:", missing)
    ignored = Ignored()
    images: list[str] = []
    for name in inputs:
        images += _images_in_folder(name, ignored) if _is_folder(name) else [name]
    report_ignored(ignored)
    return images


class _StandardInput(io.BytesIO):
    name = str(DASH)  # as the client names it in results


def image_source(path: str) -> "str | BinaryIO":
    """Return what the client takes for an image: its path or URL; for ``-``, standard input."""
    return _StandardInput(read_input(DASH)) if path == str(DASH) else path


def report_ignored(ignored: Ignored) -> None:
    """Tell on stderr what a folder contains that is not taken as an image."""
    if ignored:
        click.echo(f"Note: {ignored}.", err=True)


def _images_of(name: str, ignored: Ignored) -> Iterator[str]:
    if _is_folder(name):
        yield from _images_in_folder(name, ignored)
    elif name == str(DASH) or name.lower().endswith(LIST_SUFFIX):
        yield from _listed(Path(name))
    else:
        yield name


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except ValueError:  # a NUL in the name
        return False


def _images_in_folder(folder: str, ignored: Ignored) -> list[str]:
    return list(map(str, find_images(Path(folder), ignored, suffixes=SENT_SUFFIXES)))


def _listed(path: Path) -> Iterator[str]:
    text = decode_text(read_input(path))
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
