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
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from prompt_serve.errors import ConfigInvalid, DependencyMissing, NotReady
from prompt_serve.service.storage.migrate import schema_version, upgrade
from prompt_serve.service.storage.migrations import HEAD
from prompt_serve.text_files import expand_user

MAX_WAIT_S = 15.0  # for an answer of PostgreSQL, outside of requests and at a commit
BUSY_TIMEOUT_S = 5.0  # time that a writer waits for others
UPGRADE_TIMEOUT_S = 600.0  # time that a start waits for another process that upgrades the tables

_BUGS = (ProgrammingError, IntegrityError)  # faults of this code, not of the disk or the database
_OUTAGES = (DBAPIError, PoolTimeout)

# Errors of SQLite that no waiting cures.
_PERMANENT = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
}

_T = TypeVar("_T")

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
        self._engine = _create_engine(parse_url(url))
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
        except BaseException:  # the caller does not get this object, so it cannot close it
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @property
    def shown_url(self) -> str:
        """URL with its password hidden."""
        return self._engine.url.render_as_string(hide_password=True)

    def read(self, read: Callable[[Connection], _T]) -> _T:
        """Call ``read`` with a connection and return its result; it must not write."""
        try:
            with self._engine.connect() as connection:
                return read(connection)
        except _BUGS:
            raise
        except _OUTAGES as error:
            raise _unavailable("read", error) from error

    @contextmanager
    def write(self, *, raise_revision: bool = True) -> Iterator[Connection]:
        """Open a transaction: committed at the end of the block, rolled back on an error.

        Args:
            raise_revision: increment the revision, so that all processes read names again. It also
                makes writers of several processes take turns.
        """
        try:
            with self._turn, self._writing.begin() as connection:
                if raise_revision:
                    connection.execute(
                        revision_table.update().values(value=revision_table.c.value + 1)
                    )
                yield connection
        except _BUGS:
            raise
        except _OUTAGES as error:
            raise _unavailable("written", error) from error

    @contextmanager
    def _upgrade_transaction(self) -> Iterator[Connection]:
        """Open a transaction that waits long: another process may be upgrading the tables."""
        waiting = self._writing.execution_options(prompt_serve_timeout_s=UPGRADE_TIMEOUT_S)
        try:
            with waiting.begin() as connection:
                yield connection
        except _BUGS:
            raise
        except _OUTAGES as error:
            raise _unavailable("written", error) from error

    def revision(self) -> int:
        """Return the number of changes so far."""
        return self.read(read_revision)


def read_revision(connection: Connection) -> int:
    """Return the revision that ``connection`` sees; inside ``write``, that of the change itself."""
    return int(connection.execute(sa.select(revision_table.c.value)).scalar_one())


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


def _create_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        from prompt_serve.service.storage.postgres import bound_waits  # needs psycopg

        engine = sa.create_engine(url, pool_pre_ping=True, pool_timeout=BUSY_TIMEOUT_S)
        bound_waits(engine, BUSY_TIMEOUT_S, MAX_WAIT_S)
        sa.event.listen(engine, "connect", _set_up_postgresql)
        sa.event.listen(engine, "begin", _begin_postgresql)
        return engine
    if url.database:
        folder = Path(url.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"the folder {folder} cannot be made: {error.strerror}"
            raise _not_ready("written", reason) from error
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_postgresql(connection: Any, _: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {round(1000 * BUSY_TIMEOUT_S)}")
    connection.commit()


def _set_up_sqlite(connection: Any, _: object) -> None:
    # The driver's own BEGIN comes late and takes no lock; _begin_sqlite sends BEGIN IMMEDIATE.
    connection.isolation_level = None
    _switch_to_wal(connection)
    # FULL syncs the log at every commit: an upload that was answered survives a power failure.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


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


def _unavailable(verb: str, error: SQLAlchemyError) -> NotReady:
    cause = getattr(error, "orig", None) or error
    reason = " ".join(str(cause).split())
    is_unconfirmed = getattr(cause, "is_unconfirmed", False)  # of a commit
    changed = (
        "Whether the change was made is unknown." if is_unconfirmed else "Nothing was changed."
    )
    return _not_ready(verb, reason.rstrip("?."), changed)


def _not_ready(verb: str, reason: str, changed: str = "Nothing was changed.") -> NotReady:
    return NotReady(
        f"The registry cannot be {verb}: {reason}. {changed} "
        f"Check the disk and the database of the service, then try again.",
        retry_after_s=1.0,
        reason=reason,
    )
