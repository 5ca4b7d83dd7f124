"""Upgrade the tables of a database to this version, in one transaction under a lock.

Alembic runs the files of ``migrations/versions``. A database from before Alembic was used is
recognized by its tables and upgraded from there; one of a newer version is not touched.
"""

import threading
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from prompt_serve.errors import DatabaseUnsupported
from prompt_serve.service.storage.migrations import FOLDER, HEAD

if TYPE_CHECKING:
    from alembic.config import Config

_VERSION_TABLE = "alembic_version"
_FIRST = "0001"  # schema version of databases without Alembic's table

_LOCK_OF_POSTGRESQL = 7_305_801_231  # an arbitrary number that other programs do not use
_alembic_lock = threading.Lock()  # Alembic keeps its state in globals


def upgrade(connection: Connection) -> None:
    """Create or upgrade all tables; ``connection`` is in a transaction that may write.

    Raises:
        DatabaseUnsupported: the tables were made by a newer version of prompt-serve.
    """
    if connection.dialect.name == "postgresql":
        # Held until the transaction ends. On SQLite the transaction itself is the lock.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_OF_POSTGRESQL)))
    found = schema_version(connection)
    if found == HEAD:
        return
    # Imported here: most starts find up-to-date tables and do not need Alembic.
    from alembic import command
    from alembic.script import ScriptDirectory

    config = _config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise DatabaseUnsupported(
            f"The database has tables of version {found}; this prompt-serve supports versions up "
            f"to {HEAD}. A newer prompt-serve has upgraded it. Install that version or a newer "
            f"one.",
            found=found,
            newest=HEAD,
        )
    with _alembic_lock:
        config.attributes["connection"] = connection
        if found == _FIRST and not _has_table(connection, _VERSION_TABLE):
            command.stamp(config, _FIRST)
        command.upgrade(config, "head")


def schema_version(connection: Connection) -> str | None:
    """Return the version of the tables; None if there are none yet."""
    if _has_table(connection, _VERSION_TABLE):
        query = sa.select(sa.column("version_num", sa.String)).select_from(sa.table(_VERSION_TABLE))
        found: str | None = connection.execute(query).scalar_one_or_none()
        return found
    return _FIRST if _has_table(connection, "prompt_file") else None


def _has_table(connection: Connection, name: str) -> bool:
    return sa.inspect(connection).has_table(name)


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
