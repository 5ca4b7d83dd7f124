"""Audit log: author, time and versions of every change, in the transaction of the change.

A change and its entry are committed together, or neither is. The service never changes an entry; it
removes those that are older than ``keep_history_days``, if that is set (``retention``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from prompt_serve.schemas import AuditEntry, AuditPage
from prompt_serve.service.request_context import Actor, current_request, request_scope
from prompt_serve.service.storage.database import CHANGED, Database, metadata
from prompt_serve.service.storage.visibility import permissions, visible

_MAX_ACTOR = 200
_MAX_SUBJECT = 200

audit_table = sa.Table(
    "audit",
    metadata,
    # SQLite auto-increments only columns of its own type INTEGER.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("time", sa.String(40), nullable=False),
    sa.Column("actor", sa.String(_MAX_ACTOR), nullable=False),
    sa.Column("key_id", sa.String(32), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("subject", sa.String(_MAX_SUBJECT), nullable=False, index=True),
    sa.Column("before", sa.String(64)),
    sa.Column("after", sa.String(64)),
)


def record(
    db: Connection,
    action: str,
    subject: str,
    *,
    before: str | None = None,
    after: str | None = None,
) -> None:
    """Record a change made by the caller of the current request.

    Args:
        db: connection of ``Database.write``, in whose transaction the change is made.
        action: kind of change, for example ``task.put``, ``task.delete``, ``key.create``.
        subject: name of the task or key that is changed.
        before: its version before the change; None if there was none.
        after: its version after the change; None if there is none.
    """
    request = current_request()
    db.info[CHANGED].add(subject)
    db.execute(
        audit_table.insert(),
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "actor": request.actor.name[:_MAX_ACTOR],
            "key_id": request.actor.key_id,
            "request_id": request.request_id,
            "action": action,
            "subject": subject[:_MAX_SUBJECT],
            "before": before,
            "after": after,
        },
    )


@contextmanager
def acting_as(name: str) -> Iterator[None]:
    """Record changes inside the block as made by ``name``: for the command line."""
    with request_scope(replace(current_request(), actor=Actor(name))):
        yield


class AuditLog:
    """Reads the log; ``record`` writes it. Its methods block."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(
        self,
        *,
        limit: int = 100,
        before: int | None = None,
        action: str | None = None,
        subject: str | None = None,
    ) -> AuditPage:
        """Return entries of what the caller may see, newest first.

        ``next`` is the ``before`` of the next, older page.

        Args:
            limit: number of entries.
            before: only entries with smaller ids.
            action: only this kind of change.
            subject: only changes of this task or key.
        """
        query = sa.select(audit_table).order_by(audit_table.c.id.desc()).limit(limit + 1)
        if not permissions().has_all_tasks:
            of_tasks = audit_table.c.action.startswith("task.", autoescape=True)
            query = query.where(of_tasks, visible(audit_table.c.subject))
        if action is not None:
            query = query.where(audit_table.c.action == action)
        if subject is not None:
            query = query.where(audit_table.c.subject == subject)
        if before is not None:
            query = query.where(audit_table.c.id < before)
        entries = self._database.read(lambda db: [_entry(row) for row in db.execute(query)])
        more = entries[limit - 1].id if len(entries) > limit else None
        return AuditPage(entries=entries[:limit], next=more)


def _entry(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(**row._mapping)
