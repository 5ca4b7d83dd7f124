"""Backups of a registry in use, restored after a kill; faults that the checks must find."""

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
import sqlalchemy as sa

from prompt_serve.errors import ConfigInvalid, DatabaseUnsupported, NotReady, RegistryDamaged
from prompt_serve.prompts.prompt_file import version_of
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.service.storage.tables import class_features, kept_version, prompt_file, task
from prompt_serve.service.storage.upkeep.backup import back_up, restore
from prompt_serve.service.storage.upkeep.check import check_registry
from tests.golden import GOLDEN
from tests.service.databases import ROOT
from tests.service.process import service, starting_service, wait_until_ready
from tests.service.storage.test_registry import new

NAMES = ("low_rank", "zero_shot", "ragged", "deep")


def whole(name: str, golden: str) -> NewTask:
    """Return a task whose class features have the size that they should have."""
    prompt = GOLDEN[golden]
    size = 4 * prompt.backbone.embed_dim * len(prompt.class_names)
    return new(name, prompt, bytes(size))


def fill(url: str) -> None:
    database = Database(url)
    for number in range(9):
        Registry(database).put(whole(f"task-{number}", NAMES[number % len(NAMES)]))
    database.close()


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "registry.db"
    fill(f"sqlite:///{path}")
    return path


def tasks_of(path: Path) -> dict[str, str]:
    database = Database(f"sqlite:///{path}")
    try:
        return {task.name: task.version for task in Registry(database).tasks("", 10_000)[0]}
    finally:
        database.close()


def test_a_backup_is_a_private_file_of_one_moment(filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "backups" / "one.db"
    stop, answered = threading.Event(), []

    def write() -> None:
        database = Database(f"sqlite:///{filled}")
        registry = Registry(database)
        for number in range(10_000):
            if stop.is_set():
                break
            # Two names in one change: a copy of one moment has both or neither.
            registry.put_all(
                [whole(f"{side}-{number}", NAMES[number % len(NAMES)]) for side in ("a", "b")]
            )
            answered.append(number)
        database.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(answered) < 5:
            assert writer.is_alive()
        before = len(answered)
        checked = back_up(f"sqlite:///{filled}", target)
    finally:
        stop.set()
        writer.join()

    copied = tasks_of(target)
    sides = [{name[2:] for name in copied if name.startswith(side)} for side in ("a-", "b-")]
    assert sides[0] == sides[1]
    assert {str(number) for number in range(before)} <= sides[0]
    assert checked.state.tasks is not None
    assert checked.state.tasks >= 9 + 2 * before
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert not list(target.parent.glob(".*"))


def test_a_restored_registry_is_as_it_was(filled: Path, tmp_path: Path) -> None:
    backup, before = tmp_path / "backup.db", tasks_of(filled)
    back_up(f"sqlite:///{filled}", backup)
    database = Database(f"sqlite:///{filled}")
    Registry(database).delete("task-3")
    database.close()

    restored = restore(backup, f"sqlite:///{filled}")

    assert tasks_of(filled) == before
    assert restored.replaced is not None
    assert "task-3" not in tasks_of(restored.replaced)
    assert stat.S_IMODE(filled.stat().st_mode) == 0o600
    assert check_registry(f"sqlite:///{filled}").faults == ()


def _spoil(path: Path) -> None:
    path.write_bytes(b"no database at all" * 500)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _leave_log(path: Path) -> None:
    """Delete the main file only, as while a process has it open."""
    database = Database(f"sqlite:///{path}")
    Registry(database).put(whole("later", "deep"))
    log = path.with_name("registry.db-wal").read_bytes()
    database.close()
    path.unlink()
    path.with_name("registry.db-wal").write_bytes(log)


@pytest.mark.parametrize(
    "harm",
    [Path.unlink, _spoil, _cut, _leave_log, lambda path: shutil.rmtree(path.parent)],
    ids=["deleted", "overwritten", "cut off", "log left", "folder deleted"],
)
def test_a_lost_registry_is_restored(
    filled: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    backup, before = tmp_path / "backup.db", tasks_of(filled)
    back_up(f"sqlite:///{filled}", backup)
    harm(filled)

    restore(backup, f"sqlite:///{filled}")

    assert tasks_of(filled) == before


def test_a_registry_in_use_is_not_replaced(filled: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    back_up(f"sqlite:///{filled}", backup)
    database = Database(f"sqlite:///{filled}")
    registry = Registry(database)

    with pytest.raises(NotReady, match=r"is in use\. Stop the service"):
        restore(backup, f"sqlite:///{filled}")

    registry.put(whole("later", "deep"))
    database.close()
    assert "later" in tasks_of(filled)
    assert [path.name for path in filled.parent.iterdir()] == ["registry.db"]


# Faults, each made by a statement with the version of one file.
FAULTS = {
    "sha256": ("UPDATE prompt_file SET data = :junk WHERE version = :v", "another sha256"),
    "size": ("UPDATE prompt_file SET size_bytes = 7 WHERE version = :v", "size_bytes is 7"),
    "classes": ("UPDATE prompt_file SET n_classes = 99 WHERE version = :v", "n_classes is 99"),
    "method": ("UPDATE prompt_file SET method = 'x' WHERE version = :v", "method is 'x'"),
    "backbone": ("UPDATE prompt_file SET backbone = 'x' WHERE version = :v", "backbone is 'x'"),
    "features": ("UPDATE class_features SET features = :junk WHERE version = :v", "have 4 bytes"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_a_row_is_found(database_url: str, kind: str) -> None:
    fill(database_url)
    assert check_registry(database_url).faults == ()
    statement, expected = FAULTS[kind]
    database = Database(database_url)
    with database.write() as connection:
        version = connection.execute(sa.select(task.c.version).limit(1)).scalar_one()
        connection.execute(
            sa.text(statement),
            {"v": version, "junk": b"junk"} if ":junk" in statement else {"v": version},
        )
    database.close()

    checked = check_registry(database_url)

    assert expected in checked.faults[0]
    assert version[:12] in checked.faults[0]
    with pytest.raises(RegistryDamaged, match=f"is damaged. .*\n  - .*{expected}"):
        checked.raise_faults()


@pytest.mark.parametrize("junk", [b"", b"x" * 100, b"\x89PNG", b"\xff" * 8, b"\0" * 4096])
def test_a_prompt_file_that_cannot_be_read_is_found(filled: Path, junk: bytes) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        others = ", ".join(column.name for column in [*prompt_file.c][2:])
        connection.execute(
            f"INSERT INTO prompt_file (version, data, {others})"
            f" SELECT ?, ?, {others} FROM prompt_file LIMIT 1",
            (version_of(junk), junk),
        )
        connection.commit()

    [fault] = check_registry(f"sqlite:///{filled}").faults

    assert fault.startswith(f"version {version_of(junk)[:12]}: ")


@pytest.mark.parametrize("table", [task, kept_version, class_features])
def test_a_version_without_a_file_is_found(filled: Path, table: sa.Table) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        connection.execute("DELETE FROM prompt_file")
        for other in {task, kept_version, class_features} - {table}:
            connection.execute(f"DELETE FROM {other.name}")
        connection.commit()

    assert table.name in check_registry(f"sqlite:///{filled}").faults[0]


@pytest.mark.parametrize("kept", [0, 3000, 4096, 20_000])
def test_a_damaged_file_is_neither_saved_nor_restored(
    filled: Path, tmp_path: Path, kept: int
) -> None:
    backup, before = tmp_path / "backup.db", tasks_of(filled)
    back_up(f"sqlite:///{filled}", backup)
    data = bytearray(backup.read_bytes())
    data[kept:] = bytes(len(data) - kept)
    backup.write_bytes(data)

    with pytest.raises((RegistryDamaged, NotReady)):
        restore(backup, f"sqlite:///{filled}")
    with pytest.raises((RegistryDamaged, NotReady)):
        back_up(f"sqlite:///{backup}", tmp_path / "second.db")

    assert tasks_of(filled) == before
    assert not (tmp_path / "second.db").exists()


def test_a_backup_of_a_newer_version_is_refused(filled: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    back_up(f"sqlite:///{filled}", backup)
    with closing(sqlite3.connect(backup)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()

    with pytest.raises(DatabaseUnsupported, match="has tables of version 9999"):
        restore(backup, f"sqlite:///{filled}")


def test_a_registry_of_an_older_version_is_saved_and_restored(tmp_path: Path) -> None:
    old = Path(shutil.copy(ROOT / "tests" / "data" / "registry_0001.db", tmp_path))
    back_up(f"sqlite:///{old}", tmp_path / "backup.db")
    restore(tmp_path / "backup.db", f"sqlite:///{tmp_path / 'new' / 'registry.db'}")

    assert list(tasks_of(tmp_path / "new" / "registry.db")) == ["copy", "pets"]


def test_postgresql_has_its_own_tools(tmp_path: Path) -> None:
    url = "postgresql://ps:secret@db/tasks"
    with pytest.raises(ConfigInvalid, match=r"ps:\*\*\*@db/tasks is not a file .* pg_dump"):
        back_up(url, tmp_path / "backup.db")


@pytest.mark.parametrize("url", ["sqlite:////nowhere/registry.db", "sqlite://"])
def test_without_a_registry_there_is_nothing_to_save(tmp_path: Path, url: str) -> None:
    with pytest.raises((NotReady, ConfigInvalid)):
        back_up(url, tmp_path / "backup.db")


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prompt_serve", "registry", *arguments],
        env={**os.environ, "PROMPT_SERVE_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_commands_say_what_they_did(filled: Path, tmp_path: Path) -> None:
    home, backup = filled.parent, tmp_path / "backup.db"
    saved = command(home, "backup", "-o", str(backup))
    restored = command(home, "restore", str(backup), "--json")
    _spoil(backup)
    bad = command(home, "check", "--database", f"sqlite:///{backup}")

    assert (saved.returncode, saved.stdout) == (0, f"Saved to {backup}. 9 tasks, 4 prompt files.\n")
    document = json.loads(restored.stdout)
    assert (document["tasks"], document["versions"], document["faults"]) == (9, 4, [])
    assert Path(document["replaced"]).is_file()
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "not a database" in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.long
@pytest.mark.serve
def test_drill_every_upload_answered_before_the_backup_survives_a_kill(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup.db"
    answered: dict[str, str] = {}
    stop = threading.Event()

    def upload(served_url: str, uploader: int) -> None:
        with httpx.Client(base_url=served_url, timeout=60) as http:
            for number in range(10_000):
                name = f"t{uploader}-{number}"
                body = {"name": name, "class_names": ["cat", f"dog {number}"]}
                try:
                    answer = http.post("/v1/tasks", json=body)
                except httpx.TransportError:
                    return  # killed
                if answer.status_code == 201:
                    answered[name] = answer.json()["version"]

    with starting_service(home, tiny_bundle) as served:
        wait_until_ready(served)
        uploaders = [threading.Thread(target=upload, args=(served.url, n)) for n in range(3)]
        for uploader in uploaders:
            uploader.start()
        while len(answered) < 50:
            assert any(uploader.is_alive() for uploader in uploaders)
            stop.wait(0.05)
        before = dict(answered)
        saved = command(home, "backup", "-o", str(backup))
        assert saved.returncode == 0, saved.stderr
        for process in psutil.Process(served.process.pid).children(recursive=True):
            process.send_signal(signal.SIGKILL)
        served.process.kill()
        served.process.wait()
        for uploader in uploaders:
            uploader.join()

    # The disk is lost: nothing but the backup is left.
    for path in home.glob("registry.db*"):
        path.unlink()
    assert command(home, "restore", str(backup)).returncode == 0
    checked = command(home, "check", "--json")
    assert json.loads(checked.stdout)["faults"] == []
    found = tasks_of(home / "registry.db")
    missing = {name for name, version in before.items() if found.get(name) != version}
    print({"answered before": len(before), "lost": len(missing), "restored": len(found)})
    assert not missing
    with service(home, tiny_bundle) as again:
        name = next(iter(before))
        listed = httpx.get(f"{again.url}/v1/tasks/{name}", timeout=30).json()
        assert listed["version"] == before[name]
