"""The registry on real databases: one revision, whole changes, history, several processes."""

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from prompt_serve.errors import NotReady, RequestInvalid, VersionChanged, VersionInUse
from prompt_serve.prompts.prompt_file import Prompt, to_bytes, version_of
from prompt_serve.schemas import MAX_TAGS
from prompt_serve.service.request_context import Actor, RequestContext, request_scope
from prompt_serve.service.storage import database as database_module
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.preconditions import ALWAYS, Condition
from prompt_serve.service.storage.registry import NewTask, Registry, TaskFilter
from tests.golden import GOLDEN
from tests.service.databases import ROOT

FEATURES = b"\x00\x01\x02\x03"


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database)


def new(name: str, prompt: Prompt, features: bytes = FEATURES) -> NewTask:
    return NewTask(name=name, data=to_bytes(prompt), prompt=prompt, features=features)


def put(registry: Registry, name: str, prompt: Prompt, condition: Condition = ALWAYS) -> str:
    stored, _ = registry.put(new(name, prompt), condition)
    return stored.version


def test_what_was_put_is_there_after_opening_again(registry: Registry, database_url: str) -> None:
    prompt = GOLDEN["low_rank"]
    stored, is_new = registry.put(new("pets", prompt))

    opened = Database(database_url)
    try:
        again = Registry(opened)
        assert is_new
        assert again.task("pets") == stored
        assert again.versions(["pets", "none"]) == {"pets": version_of(to_bytes(prompt))}
        kept = again.prompt(stored.version, prompt.backbone.fingerprint)
        assert kept is not None
        assert kept.data == to_bytes(prompt)
        assert kept.features == FEATURES
        assert again.revision() == 1
    finally:
        opened.close()


def test_every_change_raises_the_revision(registry: Registry) -> None:
    seen = [registry.revision()]
    put(registry, "a", GOLDEN["low_rank"])
    seen.append(registry.revision())
    put(registry, "a", GOLDEN["zero_shot"])
    seen.append(registry.revision())
    registry.delete("a")
    seen.append(registry.revision())

    assert seen == [0, 1, 2, 3]


def test_features_stay_for_the_version_a_name_is_at_and_the_one_before(registry: Registry) -> None:
    first, second, third = (GOLDEN[name] for name in ("low_rank", "zero_shot", "ragged"))
    versions = [put(registry, "a", prompt) for prompt in (first, second, third)]
    put(registry, "also", first)

    def known(prompt: Prompt) -> bool:
        stored = registry.prompt(version_of(to_bytes(prompt)), prompt.backbone.fingerprint)
        assert stored is not None
        assert stored.data == to_bytes(prompt)
        return stored.features is not None

    assert [known(prompt) for prompt in (first, second, third)] == [True, True, True]
    registry.delete("also")
    assert [known(prompt) for prompt in (first, second, third)] == [False, True, True]
    registry.delete("a")
    assert [known(prompt) for prompt in (first, second, third)] == [False, False, False]
    assert [c.version for c in registry.history("a", None, 9)] == [None, *reversed(versions)]


def test_tasks_come_in_pages_in_the_order_of_their_names(registry: Registry) -> None:
    for name in ("b", "a", "d", "c", "B"):
        put(registry, name, GOLDEN["low_rank"])

    first, revision = registry.tasks("", 3)
    second, _ = registry.tasks(first[-1].name, 3)

    assert len(first) == 3
    assert [task.name for task in first + second] == ["B", "a", "b", "c", "d"]
    assert revision == 5
    assert registry.count() == 5


def test_hints_take_names_literally(registry: Registry) -> None:
    for name in ("pets", "PETS", "other"):
        put(registry, name, GOLDEN["low_rank"])

    assert sorted(registry.names_like("pet")) == ["PETS", "pets"]
    assert registry.names_like("%") == []


def test_uploads_from_many_threads_are_all_counted(registry: Registry) -> None:
    prompts = [GOLDEN["low_rank"], GOLDEN["zero_shot"]]

    def work(n: int) -> None:
        for i in range(10):
            put(registry, "same", prompts[(n + i) % 2])
            put(registry, f"own-{n}-{i}", prompts[n % 2])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert registry.revision() == 80
    assert registry.count() == 41


_OTHER_PROCESS = """
import sys
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.prompts.prompt_file import to_bytes
from tests.golden import GOLDEN
database = Database(sys.argv[1])
registry = Registry(database)
prompt = GOLDEN["low_rank"]
for i in range(20):
    name = f"{sys.argv[2]}-{i}"
    registry.put(NewTask(name=name, data=to_bytes(prompt), prompt=prompt, features=b"1234"))
database.close()
"""


def test_processes_may_create_and_write_one_database_at_once(database_url: str) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _OTHER_PROCESS, database_url, name],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for name in ("one", "two", "three")
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    database = Database(database_url)
    registry = Registry(database)
    assert registry.revision() == 60
    assert registry.count() == 60
    database.close()


def test_a_lock_that_stays_is_an_error_after_the_timeout_and_readers_do_not_notice(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.2)
    database, other = Database(database_url), Database(database_url)
    registry = Registry(database)
    put(registry, "a", GOLDEN["low_rank"])
    with other.write():
        with pytest.raises(NotReady, match=r"cannot be written: .*lock"):
            put(registry, "b", GOLDEN["zero_shot"])
        assert registry.versions(["a", "b"]).keys() == {"a"}
    put(registry, "b", GOLDEN["zero_shot"])
    database.close()
    other.close()


def test_a_full_disk_is_an_error_and_the_old_version_stays(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    registry = Registry(database)
    put(registry, "a", GOLDEN["low_rank"])

    # SQLite's own limit gives the very error that a full disk gives; it holds for a connection.
    def limit(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    database.read(limit)
    with pytest.raises(NotReady, match="full"):
        registry.put(new("a", GOLDEN["zero_shot"], 2**20 * b"\x00"))

    task = registry.task("a")
    assert task is not None
    assert task.version == version_of(to_bytes(GOLDEN["low_rank"]))
    assert registry.revision() == 1
    database.close()


def test_history_tells_who_did_what_when(registry: Registry) -> None:
    with request_scope(RequestContext(actor=Actor("ada", "k1"))):
        first = put(registry, "a", GOLDEN["low_rank"])
        second = put(registry, "a", GOLDEN["zero_shot"])
    put(registry, "a", GOLDEN["zero_shot"])  # the same again is no change
    registry.point("a", first, "rollback")
    registry.delete("a")

    entries = registry.history("a", None, 10)
    assert [(c.who, c.what, c.version, c.previous) for c in entries] == [
        ("anonymous", "delete", None, first),
        ("anonymous", "rollback", first, second),
        ("ada", "put", second, first),
        ("ada", "put", first, None),
    ]
    assert entries == sorted(entries, key=lambda c: c.at, reverse=True)
    assert registry.history("a", entries[1].id, 1) == [entries[2]]
    assert registry.version_before("a") == first  # where a deleted name comes back to


def test_a_condition_that_does_not_hold_changes_nothing(registry: Registry) -> None:
    first = put(registry, "a", GOLDEN["low_rank"], Condition(is_new=True))
    before = registry.revision()

    for condition in (Condition(is_new=True), Condition(versions=frozenset({"0" * 64}))):
        with pytest.raises(VersionChanged, match=f"'a' is at version {first[:12]}") as caught:
            put(registry, "a", GOLDEN["zero_shot"], condition)
        assert caught.value.current == first
        with pytest.raises(VersionChanged):
            registry.delete("a", condition)
    with pytest.raises(VersionChanged, match="'b' does not exist"):
        put(registry, "b", GOLDEN["zero_shot"], Condition(exists=True))

    assert registry.revision() == before
    assert registry.prompt(version_of(to_bytes(GOLDEN["zero_shot"])), "") is None
    put(registry, "a", GOLDEN["zero_shot"], Condition(versions=frozenset({first})))


def test_of_many_writers_with_one_condition_exactly_one_wins(registry: Registry) -> None:
    first = put(registry, "a", GOLDEN["low_rank"])
    others = [GOLDEN[name] for name in ("zero_shot", "ragged", "deep", "codebook_2")]
    condition = Condition(versions=frozenset({first}))

    def attempt(prompt: Prompt) -> str | None:
        try:
            return put(registry, "a", prompt, condition)
        except VersionChanged:
            return None

    with ThreadPoolExecutor(4) as pool:
        won = [version for version in pool.map(attempt, others) if version is not None]

    assert len(won) == 1
    assert registry.versions(["a"]) == {"a": won[0]}
    assert len(registry.history("a", None, 9)) == 2


def test_a_version_in_use_is_not_deleted(registry: Registry) -> None:
    first = put(registry, "a", GOLDEN["low_rank"])
    put(registry, "b", GOLDEN["low_rank"])
    with pytest.raises(VersionInUse, match="'a', 'b' point at version"):
        registry.delete_version(first)

    put(registry, "a", GOLDEN["zero_shot"])
    registry.delete("b")
    assert registry.delete_version(first)

    assert registry.prompt(first, "") is None
    assert registry.version_before("a") is None
    assert [c.kept for c in registry.history("a", None, 9)] == [True, False]
    assert not registry.delete_version(first)


def test_only_the_last_versions_of_a_name_are_kept(database: Database) -> None:
    registry = Registry(database, keep_versions=2)
    names = ("low_rank", "zero_shot", "ragged", "deep")
    oldest, *rest = (put(registry, "a", GOLDEN[name]) for name in names)
    assert set(registry.versions_of("a", limit=9)) == set(rest[1:])

    # What another name is at, or may go back to, stays.
    shared = put(registry, "b", GOLDEN["ragged"])
    put(registry, "b", GOLDEN["codebook_1"])
    put(registry, "a", GOLDEN["codebook_2"])
    put(registry, "a", GOLDEN["codebook_4"])
    assert registry.prompt(shared, "") is not None
    assert registry.prompt(oldest, "") is None
    put(registry, "b", GOLDEN["codebook_2"])
    put(registry, "b", GOLDEN["codebook_4"])
    assert registry.prompt(shared, "") is None


def test_a_swap_costs_the_same_however_often_it_was_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    registry = Registry(database, keep_versions=2)
    versions = [put(registry, name, GOLDEN[name]) for name in ("low_rank", "zero_shot")]

    def steps_of_a_swap() -> int:
        """What SQLite's virtual machine does for it."""
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        driver = database.read(lambda db: db.connection.driver_connection)
        assert isinstance(driver, sqlite3.Connection)
        driver.set_progress_handler(count, 1)
        for version in versions:
            registry.point("swapped", version, "alias")
        driver.set_progress_handler(None, 1)
        return steps

    steps_of_a_swap()
    first = steps_of_a_swap()
    for _ in range(200):
        steps_of_a_swap()
    assert 0 < steps_of_a_swap() < 1.2 * first
    database.close()


def test_tasks_are_found_by_tag_name_class_and_method(registry: Registry) -> None:
    for name, prompt in (("Pets-EU", "low_rank"), ("labels", "zero_shot"), ("other", "ragged")):
        put(registry, name, GOLDEN[prompt])
    registry.set_tags("labels", ["prod", "eu", "prod"])
    registry.set_tags("Pets-EU", ["eu"])

    def names(task_filter: TaskFilter) -> list[str]:
        return [task.name for task in registry.tasks("", 9, task_filter)[0]]

    assert names(TaskFilter(tags=("eu",))) == ["Pets-EU", "labels"]
    assert names(TaskFilter(tags=("eu", "prod"))) == ["labels"]
    assert names(TaskFilter(search="pets-e")) == ["Pets-EU"]
    assert names(TaskFilter(search="ZERO-SHOT")) == ["labels"]
    word = GOLDEN["ragged"].class_names[0]
    assert "other" in names(TaskFilter(search=word.upper()))
    assert names(TaskFilter(search="%")) == []
    assert names(TaskFilter(search="eu", tags=("eu",))) == ["Pets-EU"]
    assert with_tag(registry, "eu") == ["Pets-EU", "labels"]
    assert registry.versions_of_backbone("0" * 64, "eu") == {}
    stored = registry.task("labels")
    assert stored is not None
    assert stored.tags == ("eu", "prod")


def with_tag(registry: Registry, tag: str) -> list[str]:
    found = registry.versions_of_backbone(GOLDEN["zero_shot"].backbone.fingerprint, tag)
    assert found == registry.versions([*found])
    return sorted(found)


def test_a_deleted_task_comes_back_with_its_tags_and_a_new_one_has_none(registry: Registry) -> None:
    first = put(registry, "a", GOLDEN["low_rank"])
    registry.set_tags("a", ["eu"])
    registry.delete("a")
    assert with_tag(registry, "eu") == []
    registry.point("a", first, "rollback")
    assert with_tag(registry, "eu") == ["a"]
    registry.delete("a")
    put(registry, "a", GOLDEN["zero_shot"])
    assert with_tag(registry, "eu") == []


def test_pages_neither_repeat_nor_leave_out_while_others_write(registry: Registry) -> None:
    for i in range(20):
        put(registry, f"task-{i:02}", GOLDEN["low_rank"])
    seen: list[str] = []
    after = ""
    while True:
        page, _ = registry.tasks(after, 3)
        if not page:
            break
        seen += [task.name for task in page]
        after = page[-1].name
        put(registry, f"task-{len(seen):02}a", GOLDEN["zero_shot"])
        put(registry, "aaa", GOLDEN["zero_shot"])
        registry.delete(seen[-1])
    assert seen == sorted(set(seen))
    assert {f"task-{i:02}" for i in range(20)} <= set(seen)


@pytest.mark.parametrize(
    ("add", "remove", "left"),
    [
        (["prod"], [], ["eu", "prod", "test"]),
        ([], ["test"], ["eu"]),
        (["prod"], ["test"], ["eu", "prod"]),
        (["eu"], ["none"], ["eu", "test"]),
        ([], ["eu", "test"], []),
        ([], [], ["eu", "test"]),
    ],
)
def test_tags_are_added_and_removed(
    registry: Registry, add: list[str], remove: list[str], left: list[str]
) -> None:
    put(registry, "a", GOLDEN["low_rank"])
    put(registry, "b", GOLDEN["low_rank"])
    for name in ("a", "b"):
        registry.set_tags(name, ["eu", "test"])

    assert registry.edit_tags("a", add, remove)
    assert not registry.edit_tags("none", add, remove)

    tags = {task.name: list(task.tags) for task in registry.tasks("", 9)[0]}
    assert tags == {"a": left, "b": ["eu", "test"]}


def test_no_task_has_more_tags_than_allowed(registry: Registry) -> None:
    put(registry, "a", GOLDEN["low_rank"])
    registry.set_tags("a", [f"tag-{n}" for n in range(MAX_TAGS)])

    with pytest.raises(RequestInvalid, match="would have 51 tags; a task may have 50"):
        registry.edit_tags("a", ["more"], [])
    assert registry.edit_tags("a", ["more"], ["tag-0"])

    stored = registry.task("a")
    assert stored is not None
    assert len(stored.tags) == MAX_TAGS


def test_tags_that_are_added_at_once_all_stay(registry: Registry) -> None:
    put(registry, "a", GOLDEN["low_rank"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: registry.edit_tags("a", [f"tag-{n}"], []), range(24)))

    stored = registry.task("a")
    assert stored is not None
    assert len(stored.tags) == 24
