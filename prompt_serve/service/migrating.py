"""Brings the tables of a database to what this version wants, in one transaction under a lock.

Alembic runs the files of ``migrations/versions``. A database of the first versions, which knew no
Alembic, is recognised by its tables and goes the same way from there; one of a newer version is
left alone.
"""

import threading
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from prompt_serve.errors import DatabaseUnsupported
from prompt_serve.service import migrations

VERSION_TABLE = "alembic_version"
FIRST = "0001"  # what databases without Alembic's table hold

_LOCK_OF_POSTGRESQL = 7_305_801_231  # any number that other programs do not use
_one_at_a_time = threading.Lock()  # Alembic keeps what it works on in globals


def upgrade(connection: Connection) -> None:
    """Make or upgrade all tables; ``connection`` is in a transaction that may write.

    Raises:
        DatabaseUnsupported: a newer version of prompt-serve made the tables.
    """
    if connection.dialect.name == "postgresql":
        # Held until the transaction ends. On SQLite the transaction itself is the lock.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_OF_POSTGRESQL)))
    found = schema_version(connection)
    if found == head():
        return
    if found is not None and found not in _known():
        raise DatabaseUnsupported(
            f"The database has tables of version {found}; this prompt-serve knows those up to "
            f"{head()}. A newer prompt-serve has upgraded it. Install that version or a newer one.",
            found=found,
            newest=head(),
        )
    with _one_at_a_time:
        config = _config()
        config.attributes["connection"] = connection
        if found == FIRST and not _has_table(connection, VERSION_TABLE):
            command.stamp(config, FIRST)
        command.upgrade(config, "head")


def schema_version(connection: Connection) -> str | None:
    """The version of the tables; None where there are none yet."""
    if _has_table(connection, VERSION_TABLE):
        query = sa.select(sa.column("version_num", sa.String)).select_from(sa.table(VERSION_TABLE))
        found: str | None = connection.execute(query).scalar_one_or_none()
        return found
    return FIRST if _has_table(connection, "prompt_file") else None


@cache
def head() -> str:
    """The version of the tables that this prompt-serve works with."""
    found = ScriptDirectory.from_config(_config()).get_current_head()
    assert found is not None  # noqa: S101 (there is one file at least)
    return found


@cache
def _known() -> frozenset[str]:
    scripts = ScriptDirectory.from_config(_config())
    return frozenset(script.revision for script in scripts.walk_revisions())


def _has_table(connection: Connection, name: str) -> bool:
    return sa.inspect(connection).has_table(name)


def _config() -> Config:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(migrations.__file__).parent).replace("%", "%%")
    )
    config.set_main_option("path_separator", "os")
    return config
