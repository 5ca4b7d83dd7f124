"""Entries of the history and of the audit log are removed by age, with the next change."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.service.core import Core
from prompt_serve.service.settings import Settings
from prompt_serve.service.storage import retention
from prompt_serve.service.storage.audit import AuditLog, audit_table
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.storage.tables import change
from tests.golden import GOLDEN
from tests.service.storage.test_registry import new

DAYS = 30
PROMPTS = [replace(GOLDEN["low_rank"], name=f"prompt {n}") for n in range(6)]
VERSIONS = [version_of(to_bytes(prompt)) for prompt in PROMPTS]


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database, keep_versions=2, keep_history_days=DAYS)


def put(registry: Registry, name: str, n: int) -> None:
    registry.put(new(name, PROMPTS[n]))


def age(database: Database, days: float) -> None:
    """Make all entries older."""
    with database.write(raise_revision=False) as db:
        for table, column in ((change, change.c.at), (audit_table, audit_table.c.time)):
            for row in db.execute(sa.select(table.c.id, column.label("time"))).all():
                time = datetime.fromisoformat(row.time) - timedelta(days=days)
                text = time.isoformat(timespec="milliseconds")
                db.execute(table.update().where(table.c.id == row.id).values({column.name: text}))


def ids(database: Database) -> tuple[list[int], list[int]]:
    """Return the ids in the history of all names, and in the audit log."""

    def read(db: sa.Connection) -> tuple[list[int], list[int]]:
        found = [
            list(db.execute(sa.select(table.c.id).order_by(table.c.id)).scalars())
            for table in (change, audit_table)
        ]
        return found[0], found[1]

    return database.read(read)


@pytest.mark.parametrize("days", [0.01, 1, 29.9, 30.1, 400])
def test_entries_are_removed_from_an_age_on(
    days: float, registry: Registry, database: Database
) -> None:
    for n in range(3):
        put(registry, "a", n)
    age(database, days)
    put(registry, "b", 0)

    left = 1 if days > DAYS else 4
    assert [len(found) for found in ids(database)] == [left, left]
    assert [entry.what for entry in registry.history("b", None, 9)] == ["put"]
    assert AuditLog(database).page().entries[0].subject == "b"
    # What the service goes by does not depend on it.
    assert registry.version_before("a") == VERSIONS[1]
    assert set(registry.versions_of("a", limit=9)) == set(VERSIONS[1:3])
    assert registry.point("a", VERSIONS[1], "rollback")


@pytest.mark.parametrize(
    "make_change",
    [
        lambda registry: put(registry, "a", 5),
        lambda registry: registry.point("a", VERSIONS[0], "rollback"),
        lambda registry: registry.delete("a"),
        lambda registry: registry.set_tags("a", ["x"]),
        lambda registry: registry.edit_tags("a", ["x"], []),
        lambda registry: registry.set_pinned("a", True),
        lambda registry: registry.delete_version(VERSIONS[3]),
    ],
    ids=["put", "rollback", "delete", "tags", "edit tags", "pin", "delete a version"],
)
def test_every_kind_of_change_removes_them_and_no_id_is_used_twice(
    make_change: Callable[[Registry], object], registry: Registry, database: Database
) -> None:
    put(registry, "b", 3)
    registry.delete("b")
    for n in range(2):
        put(registry, "a", n)
    before = ids(database)
    age(database, DAYS + 1)

    make_change(registry)

    for old, now in zip(before, ids(database), strict=True):
        assert now
        assert all(one >= old[-1] for one in now)
    put(registry, "c", 4)
    for old, now in zip(before, ids(database), strict=True):
        assert now[-1] > old[-1]


def test_without_the_setting_nothing_is_removed(database: Database) -> None:
    registry = Registry(database)
    put(registry, "a", 0)
    age(database, 36_500)
    put(registry, "a", 1)
    assert [len(found) for found in ids(database)] == [2, 2]


def test_files_of_deleted_names_go_with_their_history(
    registry: Registry, database: Database
) -> None:
    for name, n in (("deleted", 0), ("deleted", 1), ("shared", 2), ("deleted later", 3)):
        put(registry, name, n)
    registry.point("other", VERSIONS[2], "alias")
    for name in ("deleted", "shared"):
        registry.delete(name)
    age(database, DAYS + 1)
    registry.delete("deleted later")

    assert [registry.has_version(version) for version in VERSIONS[:4]] == [False, False, True, True]
    assert registry.version_before("deleted") is None
    assert registry.version_before("deleted later") == VERSIONS[3]
    assert registry.versions(["other"]) == {"other": VERSIONS[2]}
    put(registry, "deleted", 0)
    assert registry.versions(["deleted"]) == {"deleted": VERSIONS[0]}


@pytest.mark.parametrize("at_once", [2, 3, 5, 20, 1000])
def test_a_change_removes_a_bounded_number_until_all_are_gone(
    at_once: int, registry: Registry, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_ENTRIES_AT_ONCE", at_once)
    for n in range(40):
        put(registry, "a", n % 2)
    age(database, DAYS + 1)
    old = 40
    while old:
        left = old
        put(registry, "a", old % 2 + 2)
        history = registry.history("a", None, 1000)
        old = sum(
            entry.at < (datetime.now(UTC) - timedelta(days=1)).isoformat() for entry in history
        )
        assert old == max(0, left - at_once)


def test_the_setting_is_that_of_the_service(tiny_bundle: Path, tmp_path: Path) -> None:
    core = Core(Settings(home=tmp_path, bundle=tiny_bundle, keep_history_days=DAYS))
    try:
        put(core.registry, "a", 0)
        age(core.database, DAYS + 1)
        put(core.registry, "a", 1)
        assert [len(found) for found in ids(core.database)] == [1, 1]
    finally:
        core.close()
