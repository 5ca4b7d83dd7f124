"""Remove what is no longer needed after a change: old files, unused class features, old entries.

What files are kept does not depend on the history, except those of deleted names.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from prompt_serve.service.storage.audit import audit_table
from prompt_serve.service.storage.tables import (
    change,
    class_features,
    kept_version,
    prompt_file,
    task,
)

_MIN_KEPT = 2  # a name always keeps its current and its previous version
_ENTRIES_AT_ONCE = 2000  # more than one change adds, so that the rest shrinks


def keep_version(db: Connection, name: str, version: str, change_id: int) -> None:
    """Record that a name can be rolled back to a version, and the last change that set it."""
    this = (kept_version.c.name == name) & (kept_version.c.version == version)
    updated = db.execute(kept_version.update().where(this).values(change_id=change_id))
    if not updated.rowcount:
        row = {"name": name, "version": version, "change_id": change_id}
        db.execute(kept_version.insert(), row)


def drop_unused(db: Connection, name: str, keep_versions: int) -> None:
    """Remove class features and files that the last change of ``name`` made superfluous.

    Args:
        db: in the transaction of that change.
        name: of the task.
        keep_versions: number of files kept for each name; 0: all.
    """
    of_name = sa.select(kept_version.c.version).where(kept_version.c.name == name)
    features_of = class_features.c.version
    db.execute(class_features.delete().where(features_of.in_(of_name), ~_in_use(features_of)))
    if not keep_versions:
        return
    newest_first = of_name.order_by(kept_version.c.change_id.desc())
    too_old = list(db.execute(newest_first.offset(max(keep_versions, _MIN_KEPT))).scalars())
    if too_old:
        drop_kept_versions(db, name, too_old)


def kept_of_deleted(db: Connection, visible: sa.ColumnElement[bool]) -> list[tuple[str, str]]:
    """Return names that were deleted with the versions kept for them, oldest first.

    Args:
        db: a connection.
        visible: condition on ``kept_version``.
    """
    exists = sa.exists().where(task.c.name == kept_version.c.name)
    query = sa.select(kept_version.c.name, kept_version.c.version).where(visible, ~exists)
    query = query.order_by(kept_version.c.change_id)
    return [(row.name, row.version) for row in db.execute(query)]


def drop_old_entries(db: Connection, keep_days: float) -> None:
    """Remove the oldest entries of the history and of the audit log, a bounded number at a time.

    A deleted name whose history is gone cannot be restored any more, so its files go as well.

    Args:
        db: in the transaction of a change.
        keep_days: age from which entries are removed; 0: never.
    """
    if not keep_days:
        return
    before = (datetime.now(UTC) - timedelta(days=keep_days)).isoformat(timespec="milliseconds")
    _drop_older(db, audit_table, audit_table.c.time, before)
    names = {row.name for row in _drop_older(db, change, change.c.at, before)}
    if not names:
        return
    of_names = kept_version.c.name.in_(names)
    has_history = sa.exists().where(change.c.name == kept_version.c.name)
    for name, version in kept_of_deleted(db, of_names & ~has_history):
        drop_kept_versions(db, name, [version])


def _drop_older(
    db: Connection, table: sa.Table, time: sa.Column[str], before: str
) -> Iterable[sa.Row[Any]]:
    """Remove the oldest entries from before a time; return what was removed."""
    id_ = table.c.id
    oldest = db.execute(sa.select(time).order_by(id_).limit(1)).scalar()
    if oldest is None or oldest >= before:
        return []
    some = sa.select(id_).order_by(id_).limit(_ENTRIES_AT_ONCE)
    # Without the newest one, SQLite would give its number to the next.
    newest = sa.select(sa.func.max(id_)).scalar_subquery()
    old = table.delete().where(id_.in_(some), id_ < newest, time < before)
    return db.execute(old.returning(*table.c)).all()


def drop_file(db: Connection, version: str) -> bool:
    """Remove a prompt file and its class features; return False if there was none.

    No name may point at it.
    """
    for table in (class_features, kept_version):
        db.execute(table.delete().where(table.c.version == version))
    return bool(db.execute(prompt_file.delete().where(prompt_file.c.version == version)).rowcount)


def drop_kept_versions(db: Connection, name: str, versions: list[str]) -> None:
    """Drop versions from those a name can be rolled back to, and files that no name keeps."""
    of_name = kept_version.c.name == name
    db.execute(kept_version.delete().where(of_name, kept_version.c.version.in_(versions)))
    kept = sa.select(kept_version.c.version).where(kept_version.c.version.in_(versions))
    for version in set(versions) - set(db.execute(kept).scalars()):
        drop_file(db, version)


def _in_use(version: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """True where a version is the current or the previous one of a name."""
    return sa.exists().where((task.c.version == version) | (task.c.previous == version))
