"""Open and list files by path or URL; URLs (``s3://``, ``gs://``, ``hf://``) go through fsspec.

fsspec is imported for URLs only: local files need no extra.
"""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from prompt_serve.errors import (
    ConfigInvalid,
    DatasetInvalid,
    DependencyMissing,
    ImageInvalid,
    PromptServeError,
)
from prompt_serve.image_folders import Ignored, find_images, is_hidden
from prompt_serve.images.image_source import read_bounded
from prompt_serve.text_files import expand_user

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Extra of the package that installs the file system of a protocol.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf"}
_WILDCARDS = "*?["
# What file systems call that which changes with an object's content, in the order of preference.
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "blob_id", "mtime"),
    *("LastModified", "last_modified", "updated", "created"),
)


def is_url(path: str) -> bool:
    """Return True for a URL, False for a local path."""
    return "://" in path


def open_binary(path: str) -> BinaryIO:
    """Open a file or URL to read.

    Raises:
        OSError: there is no such file.
        DependencyMissing: its file system is not installed.
    """
    if not is_url(path):
        return Path(path).open("rb")
    filesystem, inner = filesystem_of(path)
    return cast(BinaryIO, filesystem.open(inner, "rb"))


def read_image_file(path: str) -> bytes:
    """Return the bytes of an image's file or URL.

    Raises:
        ImageInvalid: it cannot be read.
    """
    try:
        with open_binary(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return read_bounded(file, path, size)
    # The clients of object stores raise errors of their own, not only those of files.
    except Exception as error:
        if isinstance(error, DependencyMissing | ConfigInvalid | ImageInvalid):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ImageInvalid(f"{path} cannot be read: {reason}.") from error


def filesystem_of(url: str) -> "tuple[AbstractFileSystem, str]":
    """Return the file system of a URL, and the path in it.

    Raises:
        DependencyMissing: fsspec, or the package for this protocol, is not installed.
        ConfigInvalid: the protocol is unknown, or the URL is invalid.
    """
    protocol = url.partition("://")[0]
    extra = _EXTRAS.get(protocol, "s3")
    try:
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(url)
    except ImportError as error:
        raise DependencyMissing(
            f"Reading {protocol}:// needs {error.name or 'fsspec'}: "
            f"pip install 'prompt-serve[{extra}]'",
            package=str(error.name),
            extra=extra,
        ) from error
    except ValueError as error:
        raise ConfigInvalid(f"{url} cannot be opened: {error}") from error
    return filesystem, path


@contextmanager
def store_errors(path: str) -> Iterator[None]:
    """Raise what goes wrong with a file or URL as one error; a missing file stays one.

    The clients of object stores raise errors of their own, not only those of files.

    Raises:
        DatasetInvalid: it cannot be read.
        FileNotFoundError: it does not exist.
    """
    try:
        yield
    except (PromptServeError, FileNotFoundError):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetInvalid(f"{path} cannot be read: {reason}", []) from error


def read_file(path: str) -> bytes:
    """Return the content of a file or URL.

    Raises:
        DatasetInvalid: it cannot be read.
        FileNotFoundError: it does not exist.
    """
    with store_errors(path):
        if not is_url(path):
            return Path(path).read_bytes()
        filesystem, inner = filesystem_of(path)
        return cast(bytes, filesystem.cat_file(inner))


def size_of(path: str) -> int:
    """Return the number of bytes of a file or URL; 0 if it is not known.

    Raises:
        DatasetInvalid: it cannot be read.
        FileNotFoundError: it does not exist.
    """
    with store_errors(path):
        if not is_url(path):
            return Path(path).stat().st_size
        filesystem, inner = filesystem_of(path)
        return int(filesystem.info(inner).get("size") or 0)


def version_of(path: str) -> str | None:
    """Return a text that changes with the content of a file or URL; None if nothing does.

    Raises:
        DatasetInvalid: it cannot be read.
        FileNotFoundError: it does not exist.
    """
    with store_errors(path):
        if not is_url(path):
            status = Path(path).stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        filesystem, inner = filesystem_of(path)
        return _version(filesystem.info(inner))


class StoredFile(NamedTuple):
    """File of an object store."""

    name: str  # below the folder that was listed
    url: str
    version: str | None  # changes with the content


def stored_files(url: str) -> list[StoredFile]:
    """Return all files below a folder of an object store, sorted.

    Raises:
        DatasetInvalid: it cannot be read.
    """
    with store_errors(url):
        filesystem, inner = filesystem_of(url)
        filesystem.invalidate_cache()
        # The name of a revision, for example, is part of what is found, if not of what was asked.
        root = str(filesystem.info(inner)["name"]).rstrip("/")
        found: dict[str, dict[str, Any]] = filesystem.find(inner, detail=True)
    return [
        StoredFile(
            name.removeprefix(root).lstrip("/"), _url(filesystem, name), _version(found[name])
        )
        for name in sorted(found)
    ]


def _version(info: dict[str, Any]) -> str | None:
    known = next((info[key] for key in _VERSION_KEYS if info.get(key)), None)
    return None if known is None else f"{info.get('size')} {known}"


def list_files(path: str, suffixes: frozenset[str], ignored: Ignored) -> list[str]:
    """Return the files of a folder and all folders below with one of the suffixes, sorted.

    Args:
        path: local folder, or URL of one.
        suffixes: in lower case.
        ignored: what is left out is added to it.
    """
    if not is_url(path):
        return list(map(str, find_images(Path(path), ignored, suffixes=suffixes)))
    filesystem, inner = filesystem_of(path)
    found = []
    for name in sorted(filesystem.find(inner)):
        suffix = Path(name).suffix.lower()
        if any(map(is_hidden, Path(name.removeprefix(inner)).parts)):
            ignored.files["hidden"] += 1
        elif suffix in suffixes:
            found.append(_url(filesystem, name))
        else:
            ignored.files[suffix or "without suffix"] += 1
    return found


def matching(path: str) -> list[str]:
    """Return the files and folders that a path or pattern names, sorted.

    ``*``, ``?`` and ``[...]`` match within a name, ``**`` any folders, and ``{0000..0009}`` counts,
    as in names of WebDataset shards. A path that exists is taken as it is.

    Raises:
        DatasetInvalid: nothing matches.
    """
    paths = [found for one in _counted(path) for found in _glob(one)]
    if not paths:
        raise DatasetInvalid("No such file or folder:", [path])
    return paths


def is_folder(path: str) -> bool:
    """Return True for a folder, local or of an object store."""
    if not is_url(path):
        return Path(path).is_dir()
    filesystem, inner = filesystem_of(path)
    return bool(filesystem.isdir(inner))


def _glob(path: str) -> list[str]:
    if not is_url(path):
        local = str(expand_user(path)) if path.startswith("~") else path
        if Path(local).exists():
            return [local]
        return sorted(glob.glob(local, recursive=True))  # noqa: PTH207  # an absolute pattern will do
    filesystem, inner = filesystem_of(path)
    if not any(wildcard in inner for wildcard in _WILDCARDS):
        return [path] if filesystem.exists(inner) else []
    found = sorted(cast(list[str], filesystem.glob(inner)))
    # As in a local pattern, a wildcard does not stand for a hidden name.
    return [_url(filesystem, name) for name in found if "/." in inner or "/." not in name]


def _url(filesystem: "AbstractFileSystem", name: str) -> str:
    return str(filesystem.unstrip_protocol(name))


def _counted(path: str) -> list[str]:
    """Expand ``{0000..0009}``."""
    before, brace, rest = path.partition("{")
    numbers, closed, after = rest.partition("}")
    first, dots, last = numbers.partition("..")
    if not (brace and closed and dots and first.isdecimal() and last.isdecimal()):
        return [path]
    return [
        f"{before}{number:0{len(first)}d}{end}"
        for number in range(int(first), int(last) + 1)
        for end in _counted(after)
    ]
