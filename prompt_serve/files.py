"""Write files and folders atomically: readers find the old content or the whole new one.

New content is written under a temporary name beside the target, on the same file system, and is
renamed at the end. After an error or an interrupt the target is as it was and nothing else is
left; a process that is killed leaves a hidden ``.NAME.xxxxxxxx.tmp``.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

PROBE_BYTES = 16_384  # about a prompt file


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int | None = None, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary file that becomes ``path`` when the block ends without an error.

    Missing parent folders are created. A symbolic link at ``path`` is replaced, not followed.

    Args:
        path: file to write.
        mode: permission bits of the file; by default those of any new file, 0o666 less the umask.
            A file with a ``mode`` is private (0o600) until it is complete.
        sync: flush the content to the disk before the rename, so that it survives a power failure.

    Raises:
        OSError: the folder cannot be written to; ``filename`` is ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    with _named(path):
        temporary.touch(mode=0o666 if mode is None else 0o600, exist_ok=False)
    try:
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path, *, mode: int) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an error.

    A folder cannot be renamed over another, so an existing one is first renamed to a temporary
    name and removed afterwards. Missing parent folders are created.

    Args:
        path: folder to write; not a symbolic link.
        mode: permission bits of the folder, which is private (0o700) until it is complete.

    Raises:
        OSError: the parent folder cannot be written to; ``filename`` is ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    with _named(path):
        temporary.mkdir(mode=0o700)
    try:
        yield temporary
        temporary.chmod(mode)
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path, *, in_place: bool = False) -> None:
    """Raise an OSError if a file cannot be written to ``path``; leave nothing behind.

    A command calls it before long work. Missing parent folders are not created; the nearest
    existing one must take a new file of ``PROBE_BYTES``.

    Args:
        path: file to write.
        in_place: an existing file is opened, not replaced, so that a device such as /dev/null
            will do.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.exists() or (path.is_file() and not in_place):
        _check_folder_of(path)
    elif not in_place:
        raise OSError(errno.EINVAL, "it is a device or pipe, which cannot be replaced", str(path))
    elif path.is_file():
        with path.open("ab"):
            pass
        if shutil.disk_usage(path).free < PROBE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def check_writable_folder(path: Path, *, replaced: bool = False) -> None:
    """Raise an OSError if files cannot be written into the folder ``path``; leave nothing behind.

    Args:
        path: folder to write; it need not exist.
        replaced: it is written as a whole (``atomic_folder``), so that its parent must be writable.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder", str(path))
    _check_folder_of(path if replaced else path / "file")


def _check_folder_of(path: Path) -> None:
    """Write a file into the nearest existing parent folder of ``path``, and remove it."""
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder", str(path))
    temporary = _temporary_name(folder / path.name)
    try:
        with _named(path), temporary.open("xb") as file:
            file.write(bytes(PROBE_BYTES))
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace_folder(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = _temporary_name(path)
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    # File systems allow 255 bytes, and a character may take four.
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the target in an OSError, not the temporary file, which means nothing to users."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
