"""What the tasks of a caller take, and the quotas on it."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from prompt_serve.errors import QuotaExceeded
from prompt_serve.service.request_context import current_request
from prompt_serve.service.storage.retention import drop_kept_versions, kept_of_deleted
from prompt_serve.service.storage.tables import kept_version, prompt_file, task
from prompt_serve.service.storage.visibility import permissions, visible

_RETRY_S = 3600.0  # waiting does not help; clients give up


@dataclass(frozen=True)
class Stored:
    """Number of tasks, and bytes of their prompt files with all kept versions."""

    tasks: int
    size_bytes: int


def read_stored(db: Connection) -> Stored:
    """Return what the tasks take that the caller may see."""
    tasks = sa.select(sa.func.count()).select_from(task).where(visible(task.c.name))
    kept = sa.select(kept_version.c.version).where(visible(kept_version.c.name))
    size = sa.func.coalesce(sa.func.sum(prompt_file.c.size_bytes), 0)
    sizes = sa.select(size).where(prompt_file.c.version.in_(kept))
    return Stored(int(db.execute(tasks).scalar_one()), int(db.execute(sizes).scalar_one()))


def check_stored(db: Connection) -> None:
    """Raise QuotaExceeded if the tasks of the caller take more than its quota.

    Called in the transaction of a change, which is then undone. Versions of tasks that the caller
    deleted are dropped first: nothing else could ever make room.
    """
    quota = current_request().actor.quota
    if quota.tasks is None and quota.stored_bytes is None:
        return
    stored = _with_room(db, quota.stored_bytes)
    for name, found, limit in (
        ("tasks", stored.tasks, quota.tasks),
        ("stored_bytes", stored.size_bytes, quota.stored_bytes),
    ):
        if limit is not None and found > limit:
            raise QuotaExceeded(
                f"After this change the key would have {found:,} {name.replace('_', ' ')}; its "
                f"limit is {limit:,}. Nothing was changed. Delete tasks first, or ask for a larger "
                f"quota.",
                quota=name,
                limit=limit,
                retry_after_s=_RETRY_S,
            )


def _with_room(db: Connection, limit: int | None) -> Stored:
    """Drop versions of deleted tasks, oldest first, until the rest fits; return what is left."""
    stored = read_stored(db)
    if limit is None or stored.size_bytes <= limit or permissions().has_all_tasks:
        return stored
    for name, version in kept_of_deleted(db, visible(kept_version.c.name)):
        drop_kept_versions(db, name, [version])
        stored = read_stored(db)
        if stored.size_bytes <= limit:
            break
    return stored
