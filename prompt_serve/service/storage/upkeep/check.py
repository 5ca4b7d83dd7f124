"""Check a registry as a whole: the database's own checks, every prompt file, its hash and its row.

One transaction reads everything, so services may change the registry meanwhile. It writes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from prompt_serve.errors import DatabaseUnsupported, NotReady, PromptFileInvalid, RegistryDamaged
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, version_of
from prompt_serve.service.storage.database import parse_url
from prompt_serve.service.storage.migrations import HEAD
from prompt_serve.service.storage.tables import (
    class_features,
    kept_version,
    prompt_file,
    task,
    without_nul,
)
from prompt_serve.service.storage.upkeep.inspection import DatabaseState, read_state, reading_engine

_FILES_PER_READ = 64
_FLOAT_BYTES = 4
_MAX_FAULTS = 20  # of SQLite's own checks


@dataclass(frozen=True, kw_only=True)
class CheckedRegistry:
    """A registry, and what is wrong with it."""

    state: DatabaseState
    faults: tuple[str, ...]

    def raise_faults(self) -> None:
        """Raise RegistryDamaged with all faults, if there are any."""
        if self.faults:
            raise RegistryDamaged(
                f"The registry {self.state.url} is damaged. Restore a backup: "
                f"prompt-serve registry restore FILE",
                self.faults,
            )


def check_registry(url: str) -> CheckedRegistry:
    """Check the database, and every prompt file in it.

    Tables of an older version are checked as far as this version knows them.

    Raises:
        NotReady: the database cannot be read, or has no registry.
        DatabaseUnsupported: the tables were made by a newer version.
        ConfigInvalid, DependencyMissing: as ``Database``.
    """
    parsed = parse_url(url)
    shown = parsed.render_as_string(hide_password=True)
    engine = reading_engine(parsed)
    try:
        with engine.connect() as connection:
            _begin(connection)
            own = list(_own_checks(connection))
            if own:  # reading on would only repeat them
                return CheckedRegistry(
                    state=DatabaseState(url=shown, state="current"), faults=tuple(own)
                )
            state = read_state(connection, shown)
            if state.state == "not created":
                raise NotReady(f"There is no registry in {shown}.", reason="no registry")
            if state.state == "newer":
                raise DatabaseUnsupported(
                    f"{shown} has tables of version {state.tables}; this prompt-serve supports "
                    f"versions up to {HEAD}. Install the version that made it, or a newer one.",
                    found=state.tables,
                    newest=HEAD,
                )
            return CheckedRegistry(state=state, faults=tuple(_faults(connection, state)))
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        if "malformed" in reason or "not a database" in reason:
            state = DatabaseState(url=shown, state="current")
            return CheckedRegistry(state=state, faults=(reason,))
        raise NotReady(f"The registry {shown} cannot be read: {reason}.", reason=reason) from error
    finally:
        engine.dispose()


def _begin(connection: Connection) -> None:
    """Make all reads see one state of the database."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


def _own_checks(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return  # PostgreSQL's are programs of their own: pg_amcheck, and data checksums
    for (found,) in connection.exec_driver_sql(f"PRAGMA integrity_check({_MAX_FAULTS})"):
        if found != "ok":
            yield f"SQLite: {found}"
    for table, row, other, _ in connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(
        _MAX_FAULTS
    ):
        yield f"row {row} of the table {table} names a row of {other} that does not exist"


def _faults(connection: Connection, state: DatabaseState) -> Iterator[str]:
    versions = list(connection.execute(sa.select(prompt_file.c.version)).scalars())
    for start in range(0, len(versions), _FILES_PER_READ):
        some = versions[start : start + _FILES_PER_READ]
        if state.state == "current":
            yield from _faults_of_files(connection, some)
        else:
            columns = sa.select(prompt_file.c.version, prompt_file.c.data)
            for row in connection.execute(columns.where(prompt_file.c.version.in_(some))):
                _, faults = _read(row)
                yield from faults
    known = set(versions)
    tables = [(task, "task"), (class_features, "class features of")]
    if state.state == "current":
        tables.append((kept_version, "history of"))
    for table, what in tables:
        for name, version in connection.execute(sa.select(table.c[0], table.c.version)):
            if version not in known:
                yield f"{what} {name!r}: its version {version[:12]} has no prompt file"


def _faults_of_files(connection: Connection, versions: list[str]) -> Iterator[str]:
    sizes = sa.select(class_features.c.version, sa.func.length(class_features.c.features))
    features: dict[str, list[int]] = {}
    for version, size in connection.execute(sizes.where(class_features.c.version.in_(versions))):
        features.setdefault(version, []).append(size)
    for row in connection.execute(
        sa.select(prompt_file).where(prompt_file.c.version.in_(versions))
    ):
        prompt, faults = _read(row)
        yield from faults
        if prompt is not None:
            yield from _faults_of_row(row, prompt, features.get(row.version, []))


def _read(row: Any) -> tuple[Prompt | None, list[str]]:
    where = f"version {row.version[:12]}"
    if version_of(row.data) != row.version:
        return None, [f"{where}: the prompt file has another sha256, {version_of(row.data)[:12]}"]
    try:
        return from_bytes(row.data), []
    except PromptFileInvalid as error:
        return None, [f"{where}: {error.message}"]


def _faults_of_row(row: Any, prompt: Prompt, feature_bytes: list[int]) -> Iterator[str]:
    stored = {
        "size_bytes": len(row.data),
        "n_classes": len(prompt.class_names),
        "method": without_nul(prompt.method),
        "backbone": without_nul(prompt.backbone.id),
    }
    for column, expected in stored.items():
        found = getattr(row, column)
        if found != expected:
            yield (
                f"version {row.version[:12]}: {column} is {found!r}, but {expected!r} in its file"
            )
    per_class = _FLOAT_BYTES * prompt.backbone.embed_dim
    for size in feature_bytes:
        if size != per_class * len(prompt.class_names):
            yield (
                f"version {row.version[:12]}: its class features have {size:,} bytes; expected "
                f"{per_class * len(prompt.class_names):,}"
            )
