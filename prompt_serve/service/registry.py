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

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from prompt_serve.prompt_file import Prompt, version_of
from prompt_serve.service.database import Database, metadata, read_revision

_prompt_file = sa.Table(
    "prompt_file",
    metadata,
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("method", sa.String(100), nullable=False),
    sa.Column("backbone", sa.String(500), nullable=False),
    sa.Column("n_classes", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
)
_task = sa.Table(
    "task",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("version", sa.ForeignKey("prompt_file.version"), nullable=False, index=True),
    sa.Column("updated", sa.String(40), nullable=False),
)
_class_features = sa.Table(
    "class_features",
    metadata,
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

    def __init__(self, database: Database) -> None:
        self._db = database

    def revision(self) -> int:
        """The number of changes so far."""
        return self._db.revision()

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """The versions that names point at now; unknown names are left out."""
        query = sa.select(_task.c.name, _task.c.version).where(_task.c.name.in_(names))
        return self._db.read(lambda db: {row.name: row.version for row in db.execute(query)})

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
        row = self._db.read(lambda db: db.execute(query).one_or_none())
        return None if row is None else StoredPrompt(data=row.data, features=row.features)

    def task(self, name: str) -> StoredTask | None:
        query = _listing().where(_task.c.name == name)
        row = self._db.read(lambda db: db.execute(query).one_or_none())
        return None if row is None else StoredTask(**row._mapping)

    def tasks(self, after: str, limit: int) -> tuple[list[StoredTask], int]:
        """Tasks in the order of their names from the first past ``after``, and the revision."""
        query = _listing().where(_task.c.name > after).order_by(_task.c.name).limit(limit)

        def read(db: Connection) -> tuple[list[StoredTask], int]:
            revision = read_revision(db)  # first: the list is of this revision or newer
            return [StoredTask(**row._mapping) for row in db.execute(query)], revision

        return self._db.read(read)

    def count(self) -> int:
        query = sa.select(sa.func.count()).select_from(_task)
        return self._db.read(lambda db: int(db.execute(query).scalar_one()))

    def names_like(self, name: str, limit: int = 200) -> list[str]:
        """Some names that start as ``name`` does, for hints."""
        query = (
            sa.select(_task.c.name)
            .where(_task.c.name.istartswith(name[:1], autoescape=True))
            .order_by(_task.c.name)
            .limit(limit)
        )
        return self._db.read(lambda db: list(db.execute(query).scalars()))

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
        with self._db.write() as db:
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
        with self._db.write() as db:
            old = _version_of_task(db, name)
            if old is not None:
                db.execute(_task.delete().where(_task.c.name == name))
                _drop_unused_features(db, old)
        return old is not None

    def save_features(self, version: str, fingerprint: str, features: bytes) -> None:
        """Keep class features that had to be computed again; nothing if no name needs them now."""
        used = sa.select(_task.c.name).where(_task.c.version == version).limit(1)
        with self._db.write() as db:
            if db.execute(used).first() is not None:
                _insert_features(db, version, fingerprint, features)


def _listing() -> sa.Select[Any]:
    return sa.select(*_LISTED).join_from(_task, _prompt_file)


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
