"""State of a registry database, read only: nothing is created, upgraded or locked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from prompt_serve.errors import NotReady
from prompt_serve.service.storage.api_keys import key_table
from prompt_serve.service.storage.database import parse_url, read_revision
from prompt_serve.service.storage.migrate import schema_version
from prompt_serve.service.storage.migrations import HEAD
from prompt_serve.service.storage.tables import prompt_file, task

TIMEOUT_S = 5

State = Literal["not created", "current", "older", "newer"]


@dataclass(frozen=True, kw_only=True)
class DatabaseState:
    """Version of the tables, and the numbers of rows where the tables are current."""

    url: str  # its password hidden
    state: State
    tables: str | None = None  # version of the tables
    tasks: int | None = None
    versions: int | None = None
    revision: int | None = None
    keys: int | None = None  # API keys, revoked ones included


def database_state(url: str) -> DatabaseState:
    """Look into a database.

    Raises:
        NotReady: it cannot be read.
        ConfigInvalid, DependencyMissing: as ``Database``.
    """
    parsed = parse_url(url)
    shown = parsed.render_as_string(hide_password=True)
    if _is_missing(parsed):
        return DatabaseState(url=shown, state="not created")
    engine = reading_engine(parsed)
    try:
        with engine.connect() as connection:
            return read_state(connection, shown)
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise NotReady(f"The registry {shown} cannot be read: {reason}.", reason=reason) from error
    finally:
        engine.dispose()


def _is_missing(url: URL) -> bool:
    if url.get_backend_name() != "sqlite":
        return False
    return not url.database or not Path(url.database).exists()


def reading_engine(url: URL) -> Engine:
    """Return an engine whose connections cannot write."""
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, connect_args={"connect_timeout": TIMEOUT_S})
    path = Path(str(url.database)).absolute().as_uri()
    return sa.create_engine(
        url.set(database=path, query={"mode": "ro", "uri": "true"}),
        connect_args={"timeout": TIMEOUT_S},
    )


def read_state(connection: Connection, shown: str) -> DatabaseState:
    """Read the state of the database behind a connection; ``shown`` is its URL."""
    found = schema_version(connection)
    if found is None:
        return DatabaseState(url=shown, state="not created")
    if found != HEAD:
        state: State = "older" if found < HEAD else "newer"
        return DatabaseState(url=shown, state=state, tables=found)
    return DatabaseState(
        url=shown,
        state="current",
        tables=found,
        tasks=_rows(connection, task),
        versions=_rows(connection, prompt_file),
        revision=read_revision(connection),
        keys=_rows(connection, key_table),
    )


def _rows(connection: Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
