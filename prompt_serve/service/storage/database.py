"""The database behind the registry and all else that the service stores: SQLite or PostgreSQL.

One code path for both. Tables are declared with ``metadata`` by the modules that own them
(``registry``, ``keys``, ``audit``); ``migrations`` makes them, and a test holds both equal.

Every write that other processes must notice begins by raising the one revision number. That takes
the write lock of the whole database at once (on SQLite with BEGIN IMMEDIATE, on PostgreSQL through
the lock on that row), so writers queue up instead of failing half-way. Readers never wait for
them: SQLite runs in WAL mode.
"""

import contextlib
import importlib.util
import logging
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

BUSY_TIMEOUT_S = 5.0  # how long a writer waits for others
UPGRADE_TIMEOUT_S = 600.0  # and a start for another one that upgrades the tables

_FAULTS_OF_OURS = (ProgrammingError, IntegrityError)  # not of the disk or the database
_OUTAGES = (DBAPIError, PoolTimeout)

_log = logging.getLogger(__name__)
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

    Opening it makes or upgrades the tables, under a lock: several processes may start at once.

    Args:
        url: of SQLAlchemy: ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.

    Raises:
        NotReady: (from every method) the database cannot be reached, is full or stays locked.
        DatabaseUnsupported: its tables are those of a newer version.
        ConfigInvalid, DependencyMissing: the URL names no database that can be used here.
    """

    def __init__(self, url: str) -> None:
        from prompt_serve.service.storage.migrate import schema_version, upgrade
        from prompt_serve.service.storage.migrations import HEAD

        self._engine = _connect(_checked(url))
        self._writing = self._engine.execution_options(prompt_serve_writes=True)
        # SQLite lets those who wait for its lock try now and then, in no order. Threads of one
        # process take turns here, so that none of them runs out of patience.
        self._turn: contextlib.AbstractContextManager[object] = (
            threading.Lock() if self.dialect == "sqlite" else contextlib.nullcontext()
        )
        try:
            if self.read(schema_version) != HEAD:
                with self._write_patiently() as connection:
                    upgrade(connection)
        except BaseException:  # nobody gets this object to close it
            self.close()
            raise

    def close(self) -> None:
        self._engine.dispose()

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._engine.dialect.name

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    def read(self, read: Callable[[Connection], _T]) -> _T:
        """What ``read`` makes of a connection; it must not write."""
        try:
            with self._engine.connect() as connection:
                return read(connection)
        except _FAULTS_OF_OURS:
            raise
        except _OUTAGES as error:
            raise _unavailable("read", error) from error

    @contextmanager
    def write(self, *, raise_revision: bool = True) -> Iterator[Connection]:
        """A transaction: all of it happens at the end of the block, or nothing does.

        Args:
            raise_revision: tell all processes that names may point elsewhere now. It also makes
                writers of several processes take turns.
        """
        try:
            with self._turn, self._writing.begin() as connection:
                if raise_revision:
                    connection.execute(
                        revision_table.update().values(value=revision_table.c.value + 1)
                    )
                yield connection
        except _FAULTS_OF_OURS:
            raise
        except _OUTAGES as error:
            raise _unavailable("written", error) from error

    @contextmanager
    def _write_patiently(self) -> Iterator[Connection]:
        """Another process may be changing all the tables; that takes as long as it takes."""
        patient = self._writing.execution_options(prompt_serve_patience_s=UPGRADE_TIMEOUT_S)
        try:
            with patient.begin() as connection:
                yield connection
        except _FAULTS_OF_OURS:
            raise
        except _OUTAGES as error:
            raise _unavailable("written", error) from error

    def revision(self) -> int:
        """The number of changes so far."""
        return self.read(read_revision)


def read_revision(connection: Connection) -> int:
    """The revision as ``connection`` sees it; inside ``write``, that of the change being made."""
    return int(connection.execute(sa.select(revision_table.c.value)).scalar_one())


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigInvalid(f"{url!r} is not the URL of a database: {_WANTED}") from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return parsed
    if backend not in ("postgresql", "postgres"):
        shown = parsed.render_as_string(hide_password=True)
        raise ConfigInvalid(f"{shown!r} names a database that is not supported: {_WANTED}")
    if importlib.util.find_spec("psycopg") is None:
        raise DependencyMissing(
            "PostgreSQL needs psycopg: pip install 'prompt-serve[postgres]'", missing="psycopg"
        )
    return parsed.set(drivername="postgresql+psycopg")


_WANTED = "wanted sqlite:///PATH, or postgresql://USER:PASSWORD@HOST/NAME."


def _connect(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        engine = sa.create_engine(
            url, pool_pre_ping=True, pool_timeout=BUSY_TIMEOUT_S, connect_args=_PATIENCE
        )
        sa.event.listen(engine, "connect", _set_up_postgresql)
        sa.event.listen(engine, "begin", _begin_postgresql)
        return engine
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


_PATIENCE = {"connect_timeout": int(BUSY_TIMEOUT_S)}


def _set_up_postgresql(connection: Any, _: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {round(1000 * BUSY_TIMEOUT_S)}")
    connection.commit()


def _set_up_sqlite(connection: Any, _: object) -> None:
    # The driver's own BEGIN comes too late and too weak; _begin_sqlite sends the right one.
    connection.isolation_level = None
    _switch_to_wal(connection)
    # An upload that was answered survives a power failure: FULL syncs the log at every commit.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _switch_to_wal(connection: Any) -> None:
    """Wait for other processes that do the same: SQLite's busy timeout does not cover this."""
    give_up = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails when another writer came between;
    # one that takes the write lock at once waits for its turn. Reads need none: each statement
    # sees one state of the database.
    options = connection.get_execution_options()
    if not options.get("prompt_serve_writes", False):
        return
    patience_s = options.get("prompt_serve_patience_s", BUSY_TIMEOUT_S)
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * patience_s)}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_postgresql(connection: Connection) -> None:
    patience_s = connection.get_execution_options().get("prompt_serve_patience_s")
    if patience_s is not None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(1000 * patience_s)}")


def _unavailable(what: str, error: SQLAlchemyError) -> NotReady:
    reason = str(getattr(error, "orig", None) or error)
    _log.error("the registry cannot be %s: %s", what, reason)
    return NotReady(
        f"The registry cannot be {what}: {reason}. Nothing was changed. "
        f"Check the disk and the database of the service, then try again.",
        retry_after_s=1.0,
    )
