"""What may go after a name was pointed elsewhere: files too old to be kept, features not in use."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from prompt_serve.service.registry_tables import change, class_features, prompt_file, task


def drop_unused(db: Connection, name: str, keep_versions: int) -> None:
    """Remove what the last change of ``name`` has made superfluous.

    Args:
        db: in the transaction of that change.
        name: of the task.
        keep_versions: the last so many files of a name stay; 0: all.
    """
    versions = _last_versions(db, name)
    used = _in_use(db, versions)
    idle = [version for version in versions if version not in used]
    if not idle:
        return
    db.execute(class_features.delete().where(class_features.c.version.in_(idle)))
    too_old = set(versions[keep_versions:]) & set(idle) if keep_versions else set()
    gone = [version for version in too_old if not _kept_by_others(db, name, version, keep_versions)]
    if gone:
        db.execute(prompt_file.delete().where(prompt_file.c.version.in_(gone)))


def _last_versions(db: Connection, name: str) -> list[str]:
    """The versions of a name whose files are there, the one it was pointed at last first."""
    latest = sa.func.max(change.c.id)
    query = (
        sa.select(change.c.version)
        .join(prompt_file, prompt_file.c.version == change.c.version)
        .where(change.c.name == name)
        .group_by(change.c.version)
        .order_by(latest.desc())
    )
    return [str(version) for version in db.execute(query).scalars()]


def _in_use(db: Connection, versions: list[str]) -> set[str]:
    """Those that a name is at, or was at right before."""
    columns = (task.c.version, task.c.previous)
    return {
        str(version)
        for column in columns
        for version in db.execute(sa.select(column).where(column.in_(versions))).scalars()
    }


def _kept_by_others(db: Connection, name: str, version: str, keep_versions: int) -> bool:
    others = (
        sa.select(change.c.name)
        .distinct()
        .where(change.c.version == version, change.c.name != name)
    )
    return any(
        version in _last_versions(db, other)[:keep_versions]
        for other in db.execute(others).scalars().all()
    )
