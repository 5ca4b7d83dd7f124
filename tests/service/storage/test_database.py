"""The tables: made, upgraded from every earlier state, never touched when they are newer."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from prompt_serve.errors import ConfigInvalid, DatabaseUnsupported, NotReady, RequestInvalid
from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.service.storage.database import Database, metadata
from prompt_serve.service.storage.migrate import schema_version
from prompt_serve.service.storage.migrations import FOLDER, HEAD
from prompt_serve.service.storage.prompt_facts import facts_of
from prompt_serve.service.storage.registry import Registry, TaskFilter
from tests.golden import GOLDEN
from tests.service.databases import ROOT, new_database

OWNERS = ("tables", "api_keys", "audit")  # the modules that declare tables


def test_the_steps_make_the_tables_that_the_code_declares(database: Database) -> None:
    for owner in OWNERS:
        import_module(f"prompt_serve.service.storage.{owner}")

    def differences(connection: sa.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert database.read(differences) == []
    assert database.read(schema_version) == HEAD
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_opening_again_changes_nothing(database: Database, database_url: str) -> None:
    again = Database(database_url)
    try:
        assert again.read(schema_version) == HEAD
        assert again.revision() == 0
    finally:
        again.close()


def test_tables_of_a_newer_version_are_left_alone(database: Database, database_url: str) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(
        DatabaseUnsupported, match=r"has tables of version 9999; .* Install that version"
    ):
        Database(database_url)

    assert database.read(schema_version) == "9999"


@pytest.mark.parametrize("value", ["a\0b", "\0", "\ud800", "a" * 10_000, 2**63, -(2**70), 10**40])
def test_a_value_that_a_database_cannot_hold_is_no_outage(
    database: Database, value: str | int
) -> None:
    registry = Registry(database)
    queries: list[Callable[[], object]] = (
        [lambda: registry.history("a", value, 1)]
        if isinstance(value, int)
        else [
            lambda: registry.versions([value]),
            lambda: registry.tasks(value, 1),
            lambda: registry.tasks("", 1, TaskFilter(search=value, tags=(value,))),
            lambda: registry.edit_tags("a", [value], []),
            lambda: registry.versions_like(value),
        ]
    )
    for query in queries:
        with contextlib.suppress(RequestInvalid):
            query()
    assert registry.count() == 0


OLD = ROOT / "tests" / "data" / "registry_0001.db"  # written by the code before Alembic


def test_a_database_of_the_first_version_is_upgraded_without_loss(tmp_path: Path) -> None:
    url = f"sqlite:///{shutil.copy(OLD, tmp_path)}"
    database = Database(url)
    registry = Registry(database)
    try:
        tasks, revision = registry.tasks("", 9)
        assert revision == 5
        assert {task.name: task.version for task in tasks} == {
            "copy": version_of(to_bytes(GOLDEN["low_rank"])),
            "pets": version_of(to_bytes(GOLDEN["zero_shot"])),
        }
        for task, golden in zip(tasks, ("low_rank", "zero_shot"), strict=True):
            stored = registry.prompt(task.version, GOLDEN[golden].backbone.fingerprint)
            assert stored is not None
            assert stored.data == to_bytes(GOLDEN[golden])
            assert stored.features == b"\0\1\2\3"
            assert task.fingerprint == GOLDEN[golden].backbone.fingerprint
            facts = registry.facts(task.version)
            assert facts is not None
            assert facts.facts == facts_of(GOLDEN[golden])
            assert facts.n_classes == len(GOLDEN[golden].class_names)
            [entry] = registry.history(task.name, None, 9)
            assert (entry.at, entry.what, entry.version) == (task.updated, "put", task.version)
        found, _ = registry.tasks("", 9, TaskFilter(search=GOLDEN["low_rank"].class_names[0]))
        assert "copy" in [task.name for task in found]
        assert database.read(schema_version) == HEAD
    finally:
        database.close()


def test_a_database_of_the_first_version_on_postgresql_is_upgraded(postgres: str) -> None:
    url = new_database(postgres)
    database = Database(url)
    with database.write(raise_revision=False) as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
        # As ``metadata.create_all`` of that time made them.
        old = sqlite3.connect(OLD)
        for (statement,) in old.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"):
            connection.exec_driver_sql(statement.replace("BLOB", "BYTEA"))
        for table in ("prompt_file", "task", "revision", "class_features"):
            for row in old.execute(f"SELECT * FROM {table}"):
                marks = ", ".join(["%s"] * len(row))
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", row)
        old.close()
    database.close()

    upgraded = Database(url)
    try:
        tasks, revision = Registry(upgraded).tasks("", 9)
        assert [task.name for task in tasks] == ["copy", "pets"]
        assert revision == 5
        facts = Registry(upgraded).facts(tasks[0].version)
        assert facts is not None
        assert facts.facts == facts_of(GOLDEN["low_rank"])
        assert upgraded.read(schema_version) == HEAD
    finally:
        upgraded.close()


def test_a_failed_step_leaves_the_tables_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{shutil.copy(OLD, tmp_path)}"

    def fail(_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("prompt_serve.prompts.prompt_file.from_bytes", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        Database(url)
    monkeypatch.undo()

    tables = sqlite3.connect(url.removeprefix("sqlite:///"))
    assert ("change",) not in tables.execute("SELECT name FROM sqlite_master").fetchall()
    tables.close()
    database = Database(url)
    assert Registry(database).count() == 2
    database.close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/name", ""])
def test_other_urls_are_refused_with_those_that_are_expected(url: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"expected sqlite:///PATH, or postgresql://"):
        Database(url)


def test_a_server_that_is_away_is_an_outage() -> None:
    with pytest.raises(NotReady, match="cannot be read"):
        Database("postgresql://nobody@127.0.0.1:1/none")
