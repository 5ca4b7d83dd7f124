"""Back up an SQLite registry while it is used, and restore it. Both check every prompt file.

A backup is one file, itself an SQLite registry. PostgreSQL has tools of its own for this.
"""

import contextlib
import os
import shutil
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prompt_serve.errors import ConfigInvalid, NotReady
from prompt_serve.files import atomic_file
from prompt_serve.service.storage.database import parse_url, sqlite_path
from prompt_serve.service.storage.sqlite_file import (
    FILE_MODE,
    SUFFIXES,
    make_private_folder,
    new_id,
)
from prompt_serve.service.storage.upkeep.check import CheckedRegistry, check_registry


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Restored registry."""

    checked: CheckedRegistry
    path: Path
    replaced: Path | None  # the former file; None if there was none


def back_up(url: str, target: Path) -> CheckedRegistry:
    """Copy a registry to a file, as it is at one moment; services may change it meanwhile.

    Nothing is left at ``target`` unless the copy passes all checks.

    Args:
        url: of the registry.
        target: file to write; an existing one is replaced.

    Raises:
        ConfigInvalid: the registry is in PostgreSQL.
        NotReady: there is no registry, or it cannot be read.
        RegistryDamaged: the copy has faults.
    """
    path = _path(url)
    if not path.is_file():
        raise NotReady(
            f"There is no registry at {path}. The first start of the service creates it; "
            f"--database names another one.",
            reason="no registry",
        )
    with atomic_file(target, mode=FILE_MODE, sync=True) as temporary:
        try:
            # All pages in one step: a writer that commits in between does not start it again.
            with (
                contextlib.closing(_open(path)) as source,
                contextlib.closing(sqlite3.connect(temporary)) as copy,
            ):
                source.backup(copy)
                _make_single_file(copy)
        except sqlite3.Error as error:
            reason = f"{path} cannot be copied: {error}"
            raise NotReady(f"The registry {reason}.", reason=reason) from error
        checked = check_registry(f"sqlite:///{temporary}")
        checked.raise_faults()
    return checked


def restore(backup: Path, url: str) -> Restored:
    """Replace a registry by a backup; the former file is kept beside it.

    Args:
        backup: file that ``back_up`` wrote, or any copy of a registry.
        url: of the registry to replace. No service may be using it.

    Raises:
        ConfigInvalid: the registry is in PostgreSQL.
        NotReady: the registry is in use, or the backup cannot be read.
        RegistryDamaged: the backup has faults; nothing was changed.
        DatabaseUnsupported: the backup was made by a newer version.
    """
    path = _path(url)
    checked = check_registry(f"sqlite:///{backup}")
    checked.raise_faults()
    if path.exists() and path.samefile(backup):
        raise ConfigInvalid(f"{backup} is the registry itself; expected a backup of it.")
    make_private_folder(path.parent)
    with atomic_file(path, mode=FILE_MODE, sync=True) as temporary:
        shutil.copyfile(backup, temporary)
        with contextlib.closing(sqlite3.connect(temporary)) as copy:
            _make_single_file(copy)
        if path.exists():
            _check_unused(path)
        replaced = _set_aside(path)
    _sync_folder(path.parent)
    return Restored(checked=checked, path=path, replaced=replaced)


def _path(url: str) -> Path:
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    if path is None:
        shown = parsed.render_as_string(hide_password=True)
        raise ConfigInvalid(
            f"{shown} is not a file of SQLite; expected sqlite:///PATH. Back up PostgreSQL with "
            f"pg_dump and restore it with pg_restore; see the page Back up and restore."
        )
    return path


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)


def _make_single_file(copy: sqlite3.Connection) -> None:
    """Leave no log beside a copy, and give it a number of its own (see ``sqlite_file``)."""
    copy.execute("PRAGMA journal_mode = DELETE")
    copy.execute(f"PRAGMA user_version = {new_id()}")


def _check_unused(path: Path) -> None:
    """Raise NotReady if another process has opened the registry; writes its log into the file."""
    try:
        with contextlib.closing(_open(path)) as connection:
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute("PRAGMA journal_mode = DELETE")  # needs the file to itself
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return  # it is damaged, which is why it is replaced
        raise NotReady(
            f"The registry {path} is in use. Stop the service, then restore again. Nothing was "
            f"changed.",
            reason="in use",
        ) from error
    except sqlite3.DatabaseError:
        return


def _set_aside(path: Path) -> Path | None:
    """Give the former file a second name, and move what is beside it: a new file would take the
    log of the old one for its own."""
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.replaced-{time}")
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    try:
        aside.hardlink_to(path)
    except FileNotFoundError:
        return None
    return aside


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
