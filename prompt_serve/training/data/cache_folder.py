"""Folders of caches, whose content can be recomputed, and the limit of their size."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prompt_serve.errors import ConfigInvalid
from prompt_serve.text_files import expand_user

LIMIT_VARIABLE = "PROMPT_SERVE_CACHE_LIMIT"
DEFAULT_LIMIT = 20 * 10**9  # bytes
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class CacheUse:
    """Files of one kind of cache."""

    kind: str
    folder: Path
    files: int
    size_bytes: int


def cache_folder(kind: str) -> Path:
    """Return ``$PROMPT_SERVE_CACHE/<kind>``, else ``prompt-serve/<kind>`` in the user's cache.

    Raises:
        ConfigInvalid: neither is set and the user has no home folder.
    """
    return cache_root() / kind


def cache_root() -> Path:
    """Return the folder of all caches.

    Raises:
        ConfigInvalid: it is not set, and the user has no home folder.
    """
    override = os.environ.get("PROMPT_SERVE_CACHE")
    if override:
        return expand_user(override)
    base = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if base.parts[:1] == ("~",):
        raise ConfigInvalid(
            "There is no home folder for the cache. Name a folder: PROMPT_SERVE_CACHE=/tmp/cache"
        )
    return base / "prompt-serve"


def cache_limit() -> int:
    """Return the maximum size of a cache in bytes: ``PROMPT_SERVE_CACHE_LIMIT``, else 20 GB.

    Raises:
        ConfigInvalid: the variable is not a size.
    """
    value = os.environ.get(LIMIT_VARIABLE)
    if value is None:
        return DEFAULT_LIMIT
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ConfigInvalid(
            f"{LIMIT_VARIABLE}={value!r} is invalid; expected a size such as 500MB, 20GB or 0."
        )
    return int(float(found[1]) * _UNITS[found[2].upper()])


def trim(folder: Path, limit: int) -> int:
    """Remove the files of a folder that were not used for longest, until the others fit.

    A file in use is not lost: its reader has it open, and a missing one is computed again.

    Returns:
        Number of files removed.
    """
    files = sorted(_files(folder), key=lambda file: file[1].st_mtime_ns)
    total = sum(status.st_size for _, status in files)
    removed = 0
    for path, status in files:
        if total <= limit:
            break
        with contextlib.suppress(OSError):  # another process may have removed it
            path.unlink()
            total -= status.st_size
            removed += 1
    return removed


def mark_used(path: Path) -> None:
    """Note that a file was used, for ``trim``."""
    with contextlib.suppress(OSError):  # a cache of another user can still be read
        os.utime(path)


def cache_uses() -> list[CacheUse]:
    """Return what is in the caches, by kind, sorted."""
    root = cache_root()
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    uses = []
    for folder in folders:
        sizes = [status.st_size for _, status in _files(folder)]
        uses.append(CacheUse(folder.name, folder, len(sizes), sum(sizes)))
    return uses


def clear(kind: str) -> CacheUse:
    """Remove a cache; return what it held.

    Raises:
        ConfigInvalid: there is no cache of this kind.
        OSError: it cannot be removed.
    """
    uses = {use.kind: use for use in cache_uses()}
    if kind not in uses:
        known = ", ".join(uses) or "none"
        raise ConfigInvalid(f"There is no cache {kind!r} in {cache_root()}; there are: {known}.")
    shutil.rmtree(uses[kind].folder)
    return uses[kind]


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                yield path, path.stat()
