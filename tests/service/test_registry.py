"""The registry on a real SQLite file: one revision, whole changes, several processes."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prompt_serve.errors import NotReady
from prompt_serve.prompt_file import Prompt, to_bytes, version_of
from prompt_serve.service import registry as module
from prompt_serve.service.registry import Registry
from tests.golden import GOLDEN

FEATURES = b"\x00\x01\x02\x03"


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database)


def put(registry: Registry, name: str, prompt: Prompt) -> str:
    stored, _ = registry.put(name, to_bytes(prompt), prompt, FEATURES)
    return stored.version


def test_what_was_put_is_there_after_opening_again(registry: Registry, url: str) -> None:
    prompt = GOLDEN["low_rank"]
    stored, is_new = registry.put("pets", to_bytes(prompt), prompt, FEATURES)
    registry.close()

    again = Registry(url)
    try:
        assert is_new
        assert again.task("pets") == stored
        assert again.versions(["pets", "none"]) == {"pets": version_of(to_bytes(prompt))}
        kept = again.prompt(stored.version, prompt.backbone.fingerprint)
        assert kept is not None
        assert kept.data == to_bytes(prompt)
        assert kept.features == FEATURES
        assert again.revision() == 1
    finally:
        again.close()


def test_every_change_raises_the_revision(registry: Registry) -> None:
    seen = [registry.revision()]
    put(registry, "a", GOLDEN["low_rank"])
    seen.append(registry.revision())
    put(registry, "a", GOLDEN["zero_shot"])
    seen.append(registry.revision())
    registry.delete("a")
    seen.append(registry.revision())

    assert seen == [0, 1, 2, 3]


def test_a_replaced_file_stays_and_its_features_go(registry: Registry) -> None:
    prompt = GOLDEN["low_rank"]
    old = put(registry, "a", prompt)
    put(registry, "also", prompt)

    put(registry, "a", GOLDEN["zero_shot"])
    shared = registry.prompt(old, prompt.backbone.fingerprint)
    registry.delete("also")
    unused = registry.prompt(old, prompt.backbone.fingerprint)

    assert shared is not None
    assert shared.features == FEATURES
    assert unused is not None
    assert unused.features is None
    assert unused.data == to_bytes(prompt)


def test_features_are_not_saved_for_a_version_without_a_name(registry: Registry) -> None:
    prompt = GOLDEN["low_rank"]
    version = put(registry, "a", prompt)
    registry.delete("a")

    registry.save_features(version, prompt.backbone.fingerprint, FEATURES)

    kept = registry.prompt(version, prompt.backbone.fingerprint)
    assert kept is not None
    assert kept.features is None


def test_tasks_come_in_pages_in_the_order_of_their_names(registry: Registry) -> None:
    for name in ("b", "a", "d", "c", "B"):
        put(registry, name, GOLDEN["low_rank"])

    first, revision = registry.tasks("", 3)
    second, _ = registry.tasks(first[-1].name, 3)

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
from prompt_serve.service.registry import Registry
from prompt_serve.prompt_file import to_bytes
from tests.golden import GOLDEN
registry = Registry(sys.argv[1])
for i in range(20):
    registry.put(f"{sys.argv[2]}-{i}", to_bytes(GOLDEN["low_rank"]), GOLDEN["low_rank"], b"1234")
print(registry.revision())
"""


def test_processes_may_create_and_write_one_file_at_once(url: str) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _OTHER_PROCESS, url, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for name in ("one", "two", "three")
    ]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors

    registry = Registry(url)
    assert registry.revision() == 60
    assert registry.count() == 60
    registry.close()


def test_a_lock_that_stays_is_an_error_after_the_timeout_and_readers_do_not_notice(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.2)
    registry = Registry(url)
    put(registry, "a", GOLDEN["low_rank"])
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(NotReady, match="cannot be written: database is locked"):
            put(registry, "b", GOLDEN["zero_shot"])
        assert registry.versions(["a", "b"]).keys() == {"a"}
    finally:
        other.execute("ROLLBACK")
        other.close()
    put(registry, "b", GOLDEN["zero_shot"])
    registry.close()


def test_a_full_disk_is_an_error_and_the_old_version_stays(registry: Registry) -> None:
    put(registry, "a", GOLDEN["low_rank"])
    with registry._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    # SQLite's own limit gives the very error that a full disk gives; it holds for a connection.
    with registry._engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    big = 2**20 * b"\x00"
    with pytest.raises(NotReady, match="full"):
        registry.put("a", to_bytes(GOLDEN["zero_shot"]), GOLDEN["zero_shot"], big)

    task = registry.task("a")
    assert task is not None
    assert task.version == version_of(to_bytes(GOLDEN["low_rank"]))
    assert registry.revision() == 1
