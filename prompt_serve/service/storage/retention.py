"""What may go after a name was pointed elsewhere: files too old to be kept, features not in use.

None of it looks through the history, which only ever grows.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from prompt_serve.service.storage.tables import class_features, kept_version, prompt_file, task

_FEWEST = 2  # a name always keeps what it is at and what it was at before


def keep(db: Connection, name: str, version: str, change_id: int) -> None:
    """Note that a name can go back to a version, as it was pointed there by a change."""
    this = (kept_version.c.name == name) & (kept_version.c.version == version)
    noted = db.execute(kept_version.update().where(this).values(change_id=change_id))
    if not noted.rowcount:
        row = {"name": name, "version": version, "change_id": change_id}
        db.execute(kept_version.insert(), row)


def drop_unused(db: Connection, name: str, keep_versions: int) -> None:
    """Remove what the last change of ``name`` has made superfluous.

    Args:
        db: in the transaction of that change.
        name: of the task.
        keep_versions: the last so many files of a name stay; 0: all.
    """
    of_name = sa.select(kept_version.c.version).where(kept_version.c.name == name)
    features_of = class_features.c.version
    db.execute(class_features.delete().where(features_of.in_(of_name), ~_in_use(features_of)))
    if not keep_versions:
        return
    newest_first = of_name.order_by(kept_version.c.change_id.desc())
    too_old = list(db.execute(newest_first.offset(max(keep_versions, _FEWEST))).scalars())
    if too_old:
        _forget(db, name, too_old)


def drop_file(db: Connection, version: str) -> bool:
    """Remove a prompt file that no name is at, and what belongs to it; False: there is none."""
    for table in (class_features, kept_version):
        db.execute(table.delete().where(table.c.version == version))
    return bool(db.execute(prompt_file.delete().where(prompt_file.c.version == version)).rowcount)


def _forget(db: Connection, name: str, versions: list[str]) -> None:
    """A name cannot go back there any more; files that no name can go back to are removed."""
    of_name = kept_version.c.name == name
    db.execute(kept_version.delete().where(of_name, kept_version.c.version.in_(versions)))
    kept = sa.select(kept_version.c.version).where(kept_version.c.version.in_(versions))
    for version in set(versions) - set(db.execute(kept).scalars()):
        drop_file(db, version)


def _in_use(version: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Whether a name is at a version, or was there right before."""
    return sa.exists().where((task.c.version == version) | (task.c.previous == version))
