"""The audit log: who changed what, from which version to which, in the transaction of the change.

A change that is not in the log did not happen, and the other way round: both are committed together
or neither is. Nothing in the service ever changes or removes an entry.
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
from prompt_serve.service.storage.database import Database, metadata

_MAX_SUBJECT = 200

audit_table = sa.Table(
    "audit",
    metadata,
    # SQLite counts up only a column of its own type INTEGER.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("time", sa.String(40), nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
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
        db: the connection of ``Database.write``, in whose transaction the change is made.
        action: what was done, as ``task.put``, ``task.delete``, ``key.create``.
        subject: what it was done to: the name of a task, of a key.
        before: its version until now; None where there was none.
        after: its version from now on; None where there is none.
    """
    request = current_request()
    db.execute(
        audit_table.insert(),
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "actor": request.actor.name,
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
    """Changes inside are noted as ``name``'s: for the command line, and for work of the service."""
    with request_scope(replace(current_request(), actor=Actor(name))):
        yield


class AuditLog:
    """Reads the log; see ``record`` for writing. Its methods block."""

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
        """Entries from the newest on; ``next`` is the ``before`` of the next, older page."""
        query = sa.select(audit_table).order_by(audit_table.c.id.desc()).limit(limit + 1)
        for column, wanted in ((audit_table.c.action, action), (audit_table.c.subject, subject)):
            if wanted is not None:
                query = query.where(column == wanted)
        if before is not None:
            query = query.where(audit_table.c.id < before)
        entries = self._database.read(lambda db: [_entry(row) for row in db.execute(query)])
        more = entries[limit - 1].id if len(entries) > limit else None
        return AuditPage(entries=entries[:limit], next=more)


def _entry(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(**row._mapping)
