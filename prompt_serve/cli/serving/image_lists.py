"""Expand folders, files and text lists from the command line into image paths."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from prompt_serve.errors import DatasetInvalid
from prompt_serve.image_folders import HEIF_SUFFIXES, IMAGE_SUFFIXES, Ignored, find_images

# The service decodes: whether it reads HEIC is not known here.
SENT_SUFFIXES = IMAGE_SUFFIXES | HEIF_SUFFIXES
LIST_SUFFIX = ".txt"


def image_paths(inputs: Iterable[str]) -> list[str]:
    """Return the images of folders, files and text lists, without duplicates.

    Folders are searched recursively by suffix, in the order of the names; what is ignored there is
    told on stderr. A text list (.txt) has one path per line. A file that is named itself is taken
    whatever its suffix.

    Raises:
        DatasetInvalid: an input does not exist, or there are no images.
    """
    inputs = list(inputs)
    missing = [name for name in inputs if not Path(name).exists()]
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


def images_in_folders(inputs: Iterable[str]) -> list[str]:
    """Return the inputs with each folder replaced by its images, as ``image_paths`` does."""
    ignored = Ignored()
    images: list[str] = []
    for name in inputs:
        images += _images_in_folder(name, ignored) if _is_folder(name) else [name]
    report_ignored(ignored)
    return images


def report_ignored(ignored: Ignored) -> None:
    """Tell on stderr what a folder contains that is not taken as an image."""
    if ignored:
        click.echo(f"Note: {ignored}.", err=True)


def _images_of(name: str, ignored: Ignored) -> Iterator[str]:
    if _is_folder(name):
        yield from _images_in_folder(name, ignored)
    elif name.lower().endswith(LIST_SUFFIX):
        text = Path(name).read_text(encoding="utf-8", errors="surrogateescape")
        yield from (line for line in map(str.strip, text.splitlines()) if line)
    else:
        yield name


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except ValueError:  # a NUL in the name
        return False


def _images_in_folder(folder: str, ignored: Ignored) -> list[str]:
    return list(map(str, find_images(Path(folder), ignored, suffixes=SENT_SUFFIXES)))
