"""Tasks that the caller of the current request may see and change.

Every query of the registry and of the audit log that a caller can reach has the condition
``visible``; every change asks ``may_change`` or ``check_may_change``. Outside of requests, as for
the command line, all tasks are visible.
"""

import sqlalchemy as sa

from prompt_serve.errors import NotAllowed
from prompt_serve.service.permissions import Permissions
from prompt_serve.service.request_context import current_request
from prompt_serve.service.storage.tables import task_tag


def permissions() -> Permissions:
    """Return the permissions of the caller."""
    return current_request().actor.permissions


def visible(name: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return the condition that the caller may see the task of a column of names."""
    allowed = permissions()
    if allowed.has_all_tasks:
        return sa.true()
    tags = task_tag.alias("visible_tag")
    conditions = [_matches(name, pattern) for pattern in allowed.names]
    if allowed.tags:
        conditions.append(sa.exists().where(tags.c.name == name, tags.c.tag.in_(allowed.tags)))
    return sa.or_(*conditions)


def visible_revision(revision: int) -> int:
    """Return the revision; 0 for a caller that may not see all tasks, all of which it counts."""
    return revision if permissions().has_all_tasks else 0


def may_change(name: str) -> bool:
    """Return True if the caller may change a task of this name, whether it exists or not."""
    return permissions().allow_name(name)


def check_may_change(name: str) -> None:
    """Raise NotAllowed, with the names that the caller may use, unless it may change the name."""
    if not may_change(name):
        raise NotAllowed(
            f"This key may not use the name {name[:200]!r}, only "
            f"{', '.join(permissions().names[:10]) or 'tasks with its tags'}.",
            action="upload",
        )


def _matches(name: sa.ColumnElement[str], pattern: str) -> sa.ColumnElement[bool]:
    if not pattern.endswith("*"):
        return name == pattern
    prefix = pattern[:-1]
    # LIKE ignores case in SQLite.
    return sa.func.substr(name, 1, len(prefix)) == prefix
