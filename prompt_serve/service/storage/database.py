"""Database of the service: SQLite or PostgreSQL, one code path for both.

Tables are declared with ``metadata`` in the modules that own them (``tables``, ``api_keys``,
``audit``) and created by ``migrations``; a test compares the two.

Every write that other processes must notice starts by incrementing one revision number. This takes
the write lock of the whole database at once (on SQLite with BEGIN IMMEDIATE, on PostgreSQL through
the lock on that row), so writers queue up instead of failing half-way. Readers never wait for
writers: SQLite runs in WAL mode.
"""

import contextlib
import importlib.util
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from prompt_serve.errors import ConfigInvalid, DependencyMissing, NotReady, RequestInvalid
from prompt_serve.service.storage.migrate import schema_version, upgrade
from prompt_serve.service.storage.migrations import HEAD
from prompt_serve.service.storage.sqlite_file import SqliteFile
from prompt_serve.text_files import expand_user

MAX_WAIT_S = 15.0  # for an answer of PostgreSQL, outside of requests and at a commit
BUSY_TIMEOUT_S = 5.0  # time that a writer waits for others
UPGRADE_TIMEOUT_S = 600.0  # time that a start waits for another process that upgrades the tables

# Faults of this code, unless the database is damaged or denies access.
_BUGS = (ProgrammingError, IntegrityError)
# Of PostgreSQL: insufficient privilege, and no such schema, table or column.
_DENIED = frozenset({"42501", "3F000", "42P01", "42703"})
_OUTAGES = (DBAPIError, PoolTimeout)
# About values that the database cannot hold, such as NUL in a text of PostgreSQL.
_VALUES = (DataError, OverflowError, UnicodeEncodeError)

# Errors of SQLite that no waiting cures.
_PERMANENT = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
}

_T = TypeVar("_T")
CHANGED = "prompt_serve_changed"  # in ``Connection.info``: the subjects of a transaction

metadata = sa.MetaData()

revision_table = sa.Table(
    "revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.BigInteger, nullable=False),
)


class Database:
    """Connections, transactions and the revision. Thread-safe; several processes may share it.

    Opening it creates or upgrades the tables, under a lock: several processes may start at once.

    Args:
        url: SQLAlchemy URL, ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.

    Raises:
        NotReady: (from every method) the database cannot be reached, is full or stays locked.
        DatabaseUnsupported: the tables were made by a newer version.
        ConfigInvalid: the URL is invalid, or names another kind of database.
        DependencyMissing: the driver for PostgreSQL is not installed.
    """

    def __init__(self, url: str) -> None:
        parsed = parse_url(url)
        path = sqlite_path(parsed)
        self._file = None if path is None else SqliteFile(path)
        self._engine = _create_engine(parsed, self._file)
        self._last_write = float("-inf")
        self._revision = 0  # highest that was seen
        # Called when a change is stored, with the subjects of its entries in the audit log.
        self.after_change: Callable[[frozenset[str]], object] = lambda changed: None
        self._joined = threading.local()  # ``connection`` of the transaction that a thread is in
        self._writing = self._engine.execution_options(prompt_serve_writes=True)
        # SQLite has no queue for its lock: waiting writers poll, in no order. Threads of one
        # process take turns here, so that none of them times out.
        is_sqlite = self._engine.dialect.name == "sqlite"
        self._turn: contextlib.AbstractContextManager[object] = (
            threading.Lock() if is_sqlite else contextlib.nullcontext()
        )
        try:
            if self.read(schema_version) != HEAD:
                with self._upgrade_transaction() as connection:
                    upgrade(connection)
            if self._file is not None:
                self._watch_content(self._file)
        except BaseException:  # the caller does not get this object, so it cannot close it
            self.close()
            raise

    @property
    def last_write(self) -> float:
        """Return ``time.monotonic()`` of the last commit."""
        return self._last_write

    def check_writable(self) -> None:
        """Raise NotReady if no change can be made; nothing is changed."""
        with self.write(raise_revision=False) as connection:
            if connection.dialect.name == "postgresql":  # a standby is read only
                read_only = connection.exec_driver_sql("SHOW transaction_read_only").scalar_one()
                if read_only == "on":
                    raise _unavailable("written", RuntimeError("the server is read only"))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @property
    def shown_url(self) -> str:
        """URL with its password hidden."""
        return self._engine.url.render_as_string(hide_password=True)

    def read(self, read: Callable[[Connection], _T]) -> _T:
        """Call ``read`` with a connection and return its result; it must not write.

        Inside ``write``, it sees what the transaction has changed so far.

        Raises:
            RequestInvalid: the query has a value that the database cannot hold.
        """
        joined: Connection | None = getattr(self._joined, "connection", None)
        if joined is not None:
            return read(joined)
        with self._outages("read"), self._engine.connect() as connection:
            self._check_file(connection)
            found = read(connection)
            self._check_file(connection)
            return found

    @contextmanager
    def write(self, *, raise_revision: bool = True) -> Iterator[Connection]:
        """Open a transaction: committed at the end of the block, rolled back on an error.

        Blocks of one thread inside each other are one transaction, that of the outermost.

        Args:
            raise_revision: increment the revision, so that all processes read names again. It also
                makes writers of several processes take turns.

        Raises:
            RequestInvalid: the database cannot hold one of the values.
        """
        joined: Connection | None = getattr(self._joined, "connection", None)
        if joined is not None:
            yield joined
            return
        revision = 0
        changed: set[str] = set()
        with self._outages("written"), self._turn, self._writing.begin() as connection:
            connection.info[CHANGED] = changed
            self._check_file(connection)
            if raise_revision:
                revision = _raise_revision(connection)
                self._check_revision(revision - 1, self._revision)
            self._joined.connection = connection
            try:
                yield connection
            finally:
                self._joined.connection = None
            self._check_file(connection)
        self._revision = max(self._revision, revision)
        self.after_change(frozenset(changed))
        if raise_revision:
            self._last_write = time.monotonic()

    @contextmanager
    def _upgrade_transaction(self) -> Iterator[Connection]:
        """Open a transaction that waits long: another process may be upgrading the tables."""
        waiting = self._writing.execution_options(prompt_serve_timeout_s=UPGRADE_TIMEOUT_S)
        with self._outages("written"), waiting.begin() as connection:
            yield connection

    def _watch_content(self, file: SqliteFile) -> None:
        with self._outages("written"), self._turn, self._engine.connect() as connection:
            file.watch_content(_driver_connection(connection))

    def _check_file(self, connection: Connection) -> None:
        if self._file is not None:
            self._file.check(_driver_connection(connection), connection.info[_BESIDE])

    @contextmanager
    def _outages(self, verb: str) -> Iterator[None]:
        """Turn errors of the driver into NotReady, or RequestInvalid if they are about a value."""
        try:
            yield
        except _VALUES as error:
            raise RequestInvalid(
                f"The registry cannot hold a value of this request: {_reason(error)}. Nothing was "
                f"changed."
            ) from error
        except _BUGS as error:
            if self._is_damaged() or getattr(error.orig, "sqlstate", None) in _DENIED:
                raise _unavailable(verb, error) from error
            raise
        except (*_OUTAGES, sqlite3.Error) as error:
            raise _unavailable(verb, error) from error

    def _is_damaged(self) -> bool:
        """Return True if SQLite finds the file damaged: what its indexes say is then no bug."""
        if self._file is None:
            return False
        try:
            with self._engine.connect() as connection:
                found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        except DBAPIError:
            return True
        return str(found) != "ok"

    def revision(self) -> int:
        """Return the number of changes so far."""
        least = self._revision  # of before the read, which sees all that was stored by then
        found = self.read(read_revision)
        if getattr(self._joined, "connection", None) is None:
            self._check_revision(found, least)
            self._revision = max(self._revision, found)
        return found

    def _check_revision(self, found: int, least: int) -> None:
        """Raise NotReady if an SQLite file has lost changes. Servers may be restored meanwhile."""
        if self._file is not None and found < least:
            raise self._file.older_copy()


def _raise_revision(connection: Connection) -> int:
    raised = revision_table.update().values(value=revision_table.c.value + 1)
    value = connection.execute(raised.returning(revision_table.c.value)).scalar_one_or_none()
    if not isinstance(value, int):  # without it, other processes would not notice the change
        raise _unavailable("written", RuntimeError("it has no revision"))
    return value


def read_revision(connection: Connection) -> int:
    """Return the revision that ``connection`` sees; inside ``write``, that of the change itself."""
    if connection.dialect.name == "sqlite":  # every request reads it: without SQLAlchemy's layers
        row = _driver_connection(connection).execute(_REVISION).fetchone()
        value = None if row is None else row[0]
    else:
        value = connection.execute(sa.select(revision_table.c.value)).scalar_one_or_none()
    if not isinstance(value, int):
        raise _unavailable("read", RuntimeError("it has no revision"))
    return value


_REVISION = f"SELECT {revision_table.c.value.name} FROM {revision_table.name}"  # noqa: S608
_BESIDE = "files beside"  # of a connection: identities of SQLite's other files
_EXPECTED = "expected sqlite:///PATH, or postgresql://USER:PASSWORD@HOST/NAME."


def parse_url(url: str) -> URL:
    """Parse a database URL; ``~`` is expanded in the path of an SQLite file.

    Raises:
        ConfigInvalid: the URL is invalid, or names another kind of database.
        DependencyMissing: the driver for PostgreSQL is not installed.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigInvalid(f"{url!r} is not a database URL: {_EXPECTED}") from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        path = parsed.database or ""
        return parsed.set(database=str(expand_user(path))) if path.startswith("~") else parsed
    if backend not in ("postgresql", "postgres"):
        shown = parsed.render_as_string(hide_password=True)
        raise ConfigInvalid(f"{shown!r} is a database that is not supported: {_EXPECTED}")
    if importlib.util.find_spec("psycopg") is None:
        raise DependencyMissing(
            "PostgreSQL needs psycopg: pip install 'prompt-serve[postgres]'", missing="psycopg"
        )
    return parsed.set(drivername="postgresql+psycopg")


def sqlite_path(url: URL) -> Path | None:
    """Return the file of an SQLite database; None for databases in memory or on a server."""
    path = url.database or ":memory:"
    if url.get_backend_name() != "sqlite" or path == ":memory:" or path.startswith("file:"):
        return None
    return Path(path)


def _create_engine(url: URL, file: SqliteFile | None) -> Engine:
    if url.get_backend_name() != "sqlite":
        from prompt_serve.service.storage.postgres import bound_waits  # needs psycopg

        engine = sa.create_engine(url, pool_pre_ping=True, pool_timeout=BUSY_TIMEOUT_S)
        bound_waits(engine, BUSY_TIMEOUT_S, MAX_WAIT_S)
        sa.event.listen(engine, "connect", _set_up_postgresql)
        sa.event.listen(engine, "begin", _begin_postgresql)
        return engine
    if file is not None:
        uri, mode = file.uri.split("?mode=")
        url = url.set(database=uri, query={**url.query, "mode": mode, "uri": "true"})
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", partial(_set_up_sqlite, file))
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _driver_connection(connection: Connection) -> sqlite3.Connection:
    found = connection.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)  # noqa: S101 (of a database with a file)
    return found


def _set_up_postgresql(connection: Any, _: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {round(1000 * BUSY_TIMEOUT_S)}")
    connection.commit()


def _set_up_sqlite(file: SqliteFile | None, connection: Any, record: Any) -> None:
    # The driver's own BEGIN comes late and takes no lock; _begin_sqlite sends BEGIN IMMEDIATE.
    connection.isolation_level = None
    _switch_to_wal(connection)
    # FULL syncs the log at every commit: an upload that was answered survives a power failure.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if file is not None:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()  # opens the log
        record.info[_BESIDE] = file.opened()


def _switch_to_wal(connection: Any) -> None:
    """Enable WAL, waiting for other processes that do so: the busy timeout does not cover this."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # The low byte is the kind of error; the others say more about it.
            if error.sqlite_errorcode & 0xFF in _PERMANENT or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails if another writer came in between;
    # one that takes the write lock at once waits for it. Reads need no transaction: each statement
    # sees one state of the database.
    options = connection.get_execution_options()
    if not options.get("prompt_serve_writes", False):
        return
    timeout_s = options.get("prompt_serve_timeout_s", BUSY_TIMEOUT_S)
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * timeout_s)}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_postgresql(connection: Connection) -> None:
    timeout_s = connection.get_execution_options().get("prompt_serve_timeout_s")
    server: Any = connection.connection.dbapi_connection
    server.longest_wait_s = MAX_WAIT_S if timeout_s is None else timeout_s
    if timeout_s is not None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(1000 * timeout_s)}")


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split()).rstrip("?.")


def _unavailable(verb: str, error: Exception) -> NotReady:
    reason = _reason(error)
    is_unconfirmed = getattr(getattr(error, "orig", None), "is_unconfirmed", False)  # of a commit
    changed = (
        "Whether the change was made is unknown." if is_unconfirmed else "Nothing was changed."
    )
    return NotReady(
        f"The registry cannot be {verb}: {reason}. {changed} "
        f"Check the disk and the database of the service, then try again.",
        retry_after_s=1.0,
        reason=reason,
    )
