"""The file of an SQLite registry: private from its first byte, and watched while it is used.

SQLite continues with a file that was deleted or replaced, and everything written later would be
lost. ``SqliteFile.check`` therefore compares the files by device and inode at every access, and
what is in them whenever the main file has changed: by a number of its own in ``user_version``, by
the revision, which an older copy has not reached, and by SQLite's ``quick_check`` if it became
shorter. The main file is read through SQLite only: closing
a file descriptor of it would release the locks that this process holds.
"""

import contextlib
import os
import secrets
import sqlite3
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from prompt_serve.errors import NotReady

FILE_MODE = 0o600
FOLDER_MODE = 0o700
SETTLED_NS = 100_000_000  # clocks of file systems advance in steps of up to 10 ms
SUFFIXES = ("-wal", "-shm")  # SQLite's files beside the main file; they get its mode

Identity = tuple[int, int]  # device and inode
State = tuple[int, int]  # size and time of change

_AT_REST_S = 0.2
_MAX_COPYING_S = 2.0
_PAUSE_S = 0.01


class SqliteFile:
    """File of a registry, created if it is missing.

    Thread-safe; ``check`` is called with each connection that is about to be used.

    Args:
        path: of the main file.

    Raises:
        NotReady: the file or its folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beside = {suffix: path.with_name(path.name + suffix) for suffix in SUFFIXES}
        _create(path)
        self._identity: Identity | None = None  # once it is open: overlay file systems copy it then
        self._id = 0  # ``user_version``; 0 until the content is watched
        self._revision = 0  # in the main file when the content was last checked
        self._seen: State = (0, 0)  # when the content was last checked
        self._wrong: State | None = None  # when it was last found wrong
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        """URI that opens the file and never creates another."""
        return f"{self.path.absolute().as_uri()}?mode=rw"

    def opened(self) -> Mapping[str, Identity | None]:
        """Return the identities of the files beside the main file, for a connection just opened."""
        with self._lock:
            self._identity = self._identity or _identity(self.path)
        return {suffix: _identity(path) for suffix, path in self._beside.items()}

    def watch_content(self, connection: sqlite3.Connection) -> None:
        """Check what is in the file from now on; a registry without a number gets one.

        A file that cannot be written now stays without, and only its identity is checked.
        """
        with contextlib.suppress(sqlite3.OperationalError):
            _give_id(connection)
        (number,) = connection.execute("PRAGMA user_version").fetchone()
        seen = _stat(self.path)
        content = self._content()
        if number and seen is not None and content is not None and content[0] == number:
            self._id, self._revision = content
            self._seen = _settled(_state(seen))

    def check(self, connection: sqlite3.Connection, beside: Mapping[str, Identity | None]) -> None:
        """Raise NotReady unless these are the files that were opened.

        Args:
            connection: that is about to be used, or has just been.
            beside: what ``opened`` returned for it.
        """
        found = _stat(self.path)
        if found is None:
            raise _lost(self.path, "was deleted or moved")
        if (found.st_dev, found.st_ino) != self._identity:
            raise _lost(self.path, "was replaced")
        for suffix, opened in beside.items():
            if opened is not None and _identity(self._beside[suffix]) != opened:
                raise _lost(self._beside[suffix], "was deleted or replaced")
        if self._id and _state(found) != self._seen:
            with self._lock:
                self._check_content(connection)

    def _check_content(self, connection: sqlite3.Connection) -> None:
        found, content = self._content_at_rest()
        if content is None or content[0] != self._id:
            raise _lost(self.path, "was overwritten")
        if content[1] < self._revision:
            raise self.older_copy()
        if found[0] < self._seen[0]:  # or it was vacuumed
            fault = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if fault != "ok":
                raise _lost(self.path, f"was cut off ({fault})")
        self._revision = content[1]
        self._seen = _settled(found)

    def older_copy(self) -> NotReady:
        """Build the error for a file that lacks changes which were stored."""
        return _lost(self.path, "was overwritten with an older copy")

    def _content_at_rest(self) -> tuple[State, tuple[int, int] | None]:
        """Return the content, and the state of the file from before it was read.

        While another thread or process copies pages of the log into it, it may be no database for
        a moment. What is still wrong when nobody writes to it any more is wrong.
        """
        give_up = time.monotonic() + _MAX_COPYING_S
        changed_at, last = time.monotonic(), _state(_stat(self.path))
        while True:
            found, now = _state(_stat(self.path)), time.monotonic()
            content = self._content()
            if content is not None and content[0] == self._id and content[1] >= self._revision:
                return found, content
            if found != last:
                changed_at, last = now, found
            if found == self._wrong or now - changed_at > _AT_REST_S or now > give_up:
                self._wrong = found
                return found, content
            time.sleep(_PAUSE_S)

    def _content(self) -> tuple[int, int] | None:
        """Return number and revision in the main file itself, without the log; None if it is
        damaged."""
        uri = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as reader:
                (number,) = reader.execute("PRAGMA user_version").fetchone()
                (revision,) = reader.execute("SELECT value FROM revision").fetchone()
                return int(number), int(revision)
        except (sqlite3.Error, TypeError):  # no such table or row
            return None


def _settled(state: State) -> State:
    """Return a state that no file has if another change could still have the same time."""
    size, changed_ns = state
    return state if time.time_ns() - changed_ns > SETTLED_NS else (size, -1)


def new_id() -> int:
    """Return a number for ``user_version`` that no other registry or copy has."""
    return secrets.randbelow(2**31 - 1) + 1


def make_private(home: Path, database: Path | None) -> list[Path]:
    """Take all rights of other users from a home folder and a registry; return what had any.

    Left alone are files of other owners, a home that the registry is not in, and a folder that is
    shared by design (with the sticky bit, such as /tmp).
    """
    if database is None:
        return []
    wanted = {database.with_name(database.name + suffix): FILE_MODE for suffix in ("", *SUFFIXES)}
    if database.parent == home and database.is_file() and home.parent != home:
        wanted = {home: FOLDER_MODE, **wanted}
    return [path for path, mode in wanted.items() if _take_rights(path, mode)]


def _take_rights(path: Path, mode: int) -> bool:
    found = _stat(path)
    if found is None or not found.st_mode & 0o077 or found.st_uid != os.geteuid():
        return False
    is_expected = stat.S_ISDIR if mode == FOLDER_MODE else stat.S_ISREG
    if not is_expected(found.st_mode) or found.st_mode & stat.S_ISVTX:
        return False
    try:
        path.chmod(mode)
    except OSError:  # a read-only file system
        return False
    return True


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner may use; an existing one stays as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(FOLDER_MODE)


def _create(path: Path) -> None:
    try:
        make_private_folder(path.parent)
    except OSError as error:
        raise _unusable(f"the folder {path.parent} cannot be made: {error.strerror}") from error
    # SQLite would create it with the umask, and the files beside it get the mode of this one.
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
    except FileExistsError:
        return
    except OSError as error:
        raise _unusable(f"the file {path} cannot be made: {error.strerror}") from error
    try:
        os.fchmod(descriptor, FILE_MODE)
    finally:
        os.close(descriptor)


def _give_id(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA user_version").fetchone() != (0,):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            connection.execute(f"PRAGMA user_version = {new_id()}")
    finally:
        connection.execute("COMMIT")
    # It has to be in the main file, not only in the log beside it.
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _identity(path: Path) -> Identity | None:
    found = _stat(path)
    return None if found is None else (found.st_dev, found.st_ino)


def _state(found: os.stat_result | None) -> State:
    return (0, 0) if found is None else (found.st_size, found.st_mtime_ns)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _lost(path: Path, what: str) -> NotReady:
    reason = f"{path} {what} while the service was running"
    return NotReady(
        f"The registry cannot be used: {reason}. Nothing was changed. Put the file back, or stop "
        f"the service, run prompt-serve registry restore, and start it again.",
        retry_after_s=10.0,
        reason=reason,
    )


def _unusable(reason: str) -> NotReady:
    return NotReady(
        f"The registry cannot be written: {reason}. Nothing was changed. "
        f"Check the disk and the database of the service, then try again.",
        retry_after_s=1.0,
        reason=reason,
    )
