"""The database of tasks: prompt files by content, names that point at them, one revision number.

    prompt_file     version (sha256) -> the file's bytes and what listings show; never changes
    task            name -> version
    revision        one row; every change raises it in the same transaction
    class_features  (version, backbone fingerprint) -> float32; a cache: a restart encodes nothing

Prompt files stay when no name points at them any more: they are kilobytes, and history needs them.
Their class features, which are far larger and can be computed again, go in the same transaction.

Every write begins by raising the revision. That takes the write lock of the whole registry at once
(on SQLite with BEGIN IMMEDIATE, on other databases through the lock on that row), so writers queue
up instead of failing half-way. Readers never wait for them: SQLite runs in WAL mode.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from prompt_serve.errors import NotReady
from prompt_serve.prompt_file import Prompt, version_of

BUSY_TIMEOUT_S = 5.0

_FAULTS_OF_OURS = (ProgrammingError, IntegrityError)  # not of the disk or the database
_OUTAGES = (DBAPIError, PoolTimeout)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_metadata = sa.MetaData()

_prompt_file = sa.Table(
    "prompt_file",
    _metadata,
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("method", sa.String(100), nullable=False),
    sa.Column("backbone", sa.String(500), nullable=False),
    sa.Column("n_classes", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
)
_task = sa.Table(
    "task",
    _metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("version", sa.ForeignKey("prompt_file.version"), nullable=False, index=True),
    sa.Column("updated", sa.String(40), nullable=False),
)
_revision = sa.Table(
    "revision",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_class_features = sa.Table(
    "class_features",
    _metadata,
    sa.Column("version", sa.ForeignKey("prompt_file.version"), primary_key=True),
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("features", sa.LargeBinary, nullable=False),
)

_LISTED = (
    _task.c.name,
    _task.c.version,
    _task.c.updated,
    _prompt_file.c.method,
    _prompt_file.c.backbone,
    _prompt_file.c.n_classes,
    _prompt_file.c.size_bytes,
)


@dataclass(frozen=True, kw_only=True)
class StoredTask:
    """A task as listed."""

    name: str
    version: str
    updated: str  # ISO 8601, UTC
    method: str
    backbone: str
    n_classes: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class StoredPrompt:
    """The file of a version, and its class features for one backbone if they are known."""

    data: bytes
    features: bytes | None  # little-endian float32 (C, E)


class Registry:
    """Tasks in a database. Thread-safe; several processes may share the database.

    Raises:
        NotReady: (from every method) the database cannot be reached, is full or stays locked.
    """

    def __init__(self, url: str) -> None:
        self._engine = _connect(url)
        self._writing = self._engine.execution_options(prompt_serve_writes=True)
        self._create()

    def close(self) -> None:
        self._engine.dispose()

    def revision(self) -> int:
        """The number of changes so far."""
        return self._read(_read_revision)

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """The versions that names point at now; unknown names are left out."""
        query = sa.select(_task.c.name, _task.c.version).where(_task.c.name.in_(names))
        return self._read(lambda db: {row.name: row.version for row in db.execute(query)})

    def prompt(self, version: str, fingerprint: str) -> StoredPrompt | None:
        """The file of a version and its class features for a backbone."""
        cached = sa.and_(
            _class_features.c.version == _prompt_file.c.version,
            _class_features.c.fingerprint == fingerprint,
        )
        query = (
            sa.select(_prompt_file.c.data, _class_features.c.features)
            .select_from(_prompt_file.outerjoin(_class_features, cached))
            .where(_prompt_file.c.version == version)
        )
        row = self._read(lambda db: db.execute(query).one_or_none())
        return None if row is None else StoredPrompt(data=row.data, features=row.features)

    def task(self, name: str) -> StoredTask | None:
        query = _listing().where(_task.c.name == name)
        row = self._read(lambda db: db.execute(query).one_or_none())
        return None if row is None else StoredTask(**row._mapping)

    def tasks(self, after: str, limit: int) -> tuple[list[StoredTask], int]:
        """Tasks in the order of their names from the first past ``after``, and the revision."""
        query = _listing().where(_task.c.name > after).order_by(_task.c.name).limit(limit)

        def read(db: Connection) -> tuple[list[StoredTask], int]:
            revision = _read_revision(db)  # first: the list is of this revision or newer
            return [StoredTask(**row._mapping) for row in db.execute(query)], revision

        return self._read(read)

    def count(self) -> int:
        query = sa.select(sa.func.count()).select_from(_task)
        return self._read(lambda db: int(db.execute(query).scalar_one()))

    def names_like(self, name: str, limit: int = 200) -> list[str]:
        """Some names that start as ``name`` does, for hints."""
        query = (
            sa.select(_task.c.name)
            .where(_task.c.name.istartswith(name[:1], autoescape=True))
            .order_by(_task.c.name)
            .limit(limit)
        )
        return self._read(lambda db: list(db.execute(query).scalars()))

    def put(
        self, name: str, data: bytes, prompt: Prompt, features: bytes
    ) -> tuple[StoredTask, bool]:
        """Point ``name`` at a prompt file, storing it where it is new.

        Args:
            name: of the task.
            data: the bytes of the prompt file.
            prompt: what they hold.
            features: little-endian float32 (C, E) class features for the prompt's own backbone.

        Returns:
            The task, and whether the name is new.
        """
        version = version_of(data)
        stored = StoredTask(
            name=name,
            version=version,
            updated=_now(),
            method=prompt.method,
            backbone=prompt.backbone.id,
            n_classes=len(prompt.class_names),
            size_bytes=len(data),
        )
        with self._write() as db:
            _insert_prompt_file(db, data, stored)
            _insert_features(db, version, prompt.backbone.fingerprint, features)
            old = _version_of_task(db, name)
            pointer = {"name": name, "version": version, "updated": stored.updated}
            if old is None:
                db.execute(_task.insert(), pointer)
            else:
                db.execute(_task.update().where(_task.c.name == name), pointer)
                _drop_unused_features(db, old)
        return stored, old is None

    def delete(self, name: str) -> bool:
        """Remove a name; False if there was none."""
        with self._write() as db:
            old = _version_of_task(db, name)
            if old is not None:
                db.execute(_task.delete().where(_task.c.name == name))
                _drop_unused_features(db, old)
        return old is not None

    def save_features(self, version: str, fingerprint: str, features: bytes) -> None:
        """Keep class features that had to be computed again; nothing if no name needs them now."""
        used = sa.select(_task.c.name).where(_task.c.version == version).limit(1)
        with self._write() as db:
            if db.execute(used).first() is not None:
                _insert_features(db, version, fingerprint, features)

    def _create(self) -> None:
        """Make the tables where they are missing; several processes may do so at once."""
        with self._write(raise_revision=False) as db:
            _metadata.create_all(db)
            if db.execute(sa.select(_revision.c.value)).first() is None:
                db.execute(_revision.insert(), {"id": 1, "value": 0})

    def _read(self, read: Callable[[Connection], _T]) -> _T:
        try:
            with self._engine.connect() as connection:
                return read(connection)
        except _FAULTS_OF_OURS:
            raise
        except _OUTAGES as error:
            raise self._unavailable("read", error) from error

    @contextmanager
    def _write(self, *, raise_revision: bool = True) -> Iterator[Connection]:
        try:
            with self._writing.begin() as connection:
                if raise_revision:
                    connection.execute(_revision.update().values(value=_revision.c.value + 1))
                yield connection
        except _FAULTS_OF_OURS:
            raise
        except _OUTAGES as error:
            raise self._unavailable("written", error) from error

    def _unavailable(self, what: str, error: SQLAlchemyError) -> NotReady:
        reason = str(getattr(error, "orig", None) or error)
        _log.error("the registry cannot be %s: %s", what, reason)
        return NotReady(
            f"The registry cannot be {what}: {reason}. Nothing was changed. "
            f"Check the disk and the database of the service, then try again.",
            retry_after_s=1.0,
        )


def _connect(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


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
    if connection.get_execution_options().get("prompt_serve_writes", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _listing() -> sa.Select[Any]:
    return sa.select(*_LISTED).join_from(_task, _prompt_file)


def _read_revision(db: Connection) -> int:
    return int(db.execute(sa.select(_revision.c.value)).scalar_one())


def _version_of_task(db: Connection, name: str) -> str | None:
    found: str | None = db.execute(
        sa.select(_task.c.version).where(_task.c.name == name)
    ).scalar_one_or_none()
    return found


def _insert_prompt_file(db: Connection, data: bytes, stored: StoredTask) -> None:
    known = sa.select(_prompt_file.c.version).where(_prompt_file.c.version == stored.version)
    if db.execute(known).first() is None:
        row = {
            "version": stored.version,
            "data": data,
            "method": stored.method,
            "backbone": stored.backbone,
            "n_classes": stored.n_classes,
            "size_bytes": stored.size_bytes,
        }
        db.execute(_prompt_file.insert(), row)


def _insert_features(db: Connection, version: str, fingerprint: str, features: bytes) -> None:
    key = (_class_features.c.version == version) & (_class_features.c.fingerprint == fingerprint)
    if db.execute(sa.select(_class_features.c.version).where(key)).first() is None:
        row = {"version": version, "fingerprint": fingerprint, "features": features}
        db.execute(_class_features.insert(), row)


def _drop_unused_features(db: Connection, version: str) -> None:
    used = sa.select(_task.c.name).where(_task.c.version == version).limit(1)
    if db.execute(used).first() is None:
        db.execute(_class_features.delete().where(_class_features.c.version == version))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
