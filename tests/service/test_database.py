"""The tables: made, upgraded from every earlier state, never touched when they are newer."""

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from prompt_serve.errors import ConfigInvalid, DatabaseUnsupported, NotReady
from prompt_serve.service.database import Database, metadata
from prompt_serve.service.migrating import head, schema_version
from tests.service.databases import ROOT

OWNERS = ("registry",)  # the modules that declare tables


def test_the_steps_make_the_tables_that_the_code_declares(database: Database) -> None:
    for owner in OWNERS:
        import_module(f"prompt_serve.service.{owner}")

    def differences(connection: sa.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert database.read(differences) == []
    assert database.read(schema_version) == head()


def test_opening_again_changes_nothing(database: Database, database_url: str) -> None:
    again = Database(database_url)
    try:
        assert again.read(schema_version) == head()
        assert again.revision() == 0
    finally:
        again.close()


_OPEN = """
import sys
from prompt_serve.service.database import Database
Database(sys.argv[1]).close()
"""


def test_several_processes_may_make_the_tables_at_once(database_url: str) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, database_url], stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(4)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_tables_of_a_newer_version_are_left_alone(database: Database, database_url: str) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(DatabaseUnsupported, match=r"has tables of version 9999; .* Install that version"):
        Database(database_url)

    assert database.read(schema_version) == "9999"


def test_a_failed_step_leaves_the_tables_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copy(ROOT / "tests" / "data" / "registry_0001.db", tmp_path)
    step = import_module("prompt_serve.service.migrations.versions.v0002_history")

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("prompt_serve.service.prompt_words.prompt_words", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        Database(f"sqlite:///{path}")
    monkeypatch.undo()

    assert step.down_revision == "0001"
    opened = Database(f"sqlite:///{path}")
    assert opened.read(schema_version) == head()
    opened.close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/name", ""])
def test_other_urls_are_refused_with_those_that_are_wanted(url: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"wanted sqlite:///PATH, or postgresql://"):
        Database(url)


def test_a_server_that_is_away_is_an_outage() -> None:
    with pytest.raises(NotReady, match="cannot be written"):
        Database("postgresql://nobody@127.0.0.1:1/none")
