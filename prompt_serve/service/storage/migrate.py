"""Brings the tables of a database to what this version wants, in one transaction under a lock.

Alembic runs the files of ``migrations/versions``. A database of the first versions, which knew no
Alembic, is recognized by its tables and goes the same way from there; one of a newer version is
left alone.
"""

import threading
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from prompt_serve.errors import DatabaseUnsupported
from prompt_serve.service.storage.migrations import FOLDER, HEAD

if TYPE_CHECKING:
    from alembic.config import Config

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
    if found == HEAD:
        return
    # Imported here: most starts find their tables as they should be, and need no Alembic.
    from alembic import command
    from alembic.script import ScriptDirectory

    config = _config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise DatabaseUnsupported(
            f"The database has tables of version {found}; this prompt-serve knows those up to "
            f"{HEAD}. A newer prompt-serve has upgraded it. Install that version or a newer one.",
            found=found,
            newest=HEAD,
        )
    with _one_at_a_time:
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


def _has_table(connection: Connection, name: str) -> bool:
    return sa.inspect(connection).has_table(name)


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
