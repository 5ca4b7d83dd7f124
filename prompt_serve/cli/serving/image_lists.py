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
from prompt_serve.sources.lists import listed_paths

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
        yield from listed_paths(read_input(Path(name)), Path(name))
    else:
        yield name


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except ValueError:  # a NUL in the name
        return False


def _images_in_folder(folder: str, ignored: Ignored) -> list[str]:
    return list(map(str, find_images(Path(folder), ignored, suffixes=SENT_SUFFIXES)))
