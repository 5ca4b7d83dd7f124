"""A registry file that is harmed while it is used: the next change is refused, none is lost."""

import contextlib
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from prompt_serve.errors import NotReady
from prompt_serve.service.storage import sqlite_file
from prompt_serve.service.storage.database import Database, read_revision
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.storage.sqlite_file import make_private
from tests.golden import GOLDEN
from tests.service.storage.test_registry import new, put

N_TASKS = 12


def filled(path: Path, *, features: bytes = b"\0\1\2\3" * 500) -> Registry:
    """Return a registry whose tasks are in the main file, and one more in the log beside it."""
    first = Database(f"sqlite:///{path}")
    for n in range(N_TASKS):
        Registry(first).put(new(f"task-{n}", GOLDEN["low_rank"], features))
    first.close()
    registry = Registry(Database(f"sqlite:///{path}"))
    put(registry, "last", GOLDEN["zero_shot"])
    return registry


def _another(path: Path) -> Path:
    other = path.with_name("other.db")
    database = Database(f"sqlite:///{other}")
    put(Registry(database), "foreign", GOLDEN["deep"])
    database.close()
    return other


def _copy(path: Path) -> Path:
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    return copy


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _recreate(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def _delete_all(path: Path) -> None:
    for file in path.parent.glob("registry.db*"):
        file.unlink()


HARM: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "deleted with all beside it": _delete_all,
    "moved": lambda path: path.rename(path.with_name("elsewhere.db")),
    "folder moved": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
    "folder deleted": lambda path: shutil.rmtree(path.parent),
    "replaced by another registry": lambda path: _another(path).replace(path),
    "replaced by its own copy": lambda path: _copy(path).replace(path),
    "replaced by an empty file": lambda path: _recreate(path, Path.touch),
    "a folder in its place": lambda path: _recreate(path, Path.mkdir),
    "overwritten by another registry": lambda path: shutil.copyfile(_another(path), path),
    "overwritten by text": lambda path: path.write_bytes(b"no database at all" * 500),
    "overwritten by zeros": lambda path: path.write_bytes(bytes(100_000)),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "cut within the first page": lambda path: os.truncate(path, 50),
    "cut after the first page": lambda path: os.truncate(path, 4096),
    "cut in the middle": lambda path: os.truncate(path, path.stat().st_size // 2),
    "log deleted": lambda path: _beside(path, "-wal").rename(path.with_name("w")),
    "log replaced": lambda path: _recreate(_beside(path, "-wal"), Path.touch),
    "index deleted": lambda path: _beside(path, "-shm").rename(path.with_name("s")),
}


@pytest.mark.parametrize("kind", HARM)
def test_a_harmed_file_is_noticed_at_the_next_change(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "home" / "registry.db"
    registry = filled(path)
    HARM[kind](path)
    try:
        accesses: list[Callable[[], object]] = [
            lambda: put(registry, "more", GOLDEN["low_rank"]),
            lambda: registry.delete("last"),
            lambda: registry.set_tags("last", ["eu"]),
            registry.count,
        ]
        for change in accesses:
            with pytest.raises(NotReady, match=r"The registry cannot be .*: .*Nothing was changed"):
                change()
    finally:
        registry._db.close()


def _checkpoint(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _backup(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source)) as read,
        contextlib.closing(sqlite3.connect(target)) as write,
    ):
        read.backup(write)


@pytest.mark.parametrize("copy", [shutil.copyfile, _backup], ids=["copied", "backed up"])
@pytest.mark.parametrize("n_changes", [1, 2, 30])
@pytest.mark.parametrize("change", ["put", "delete", "tags"])
def test_an_older_copy_of_the_same_registry_is_noticed(
    tmp_path: Path, copy: Callable[[Path, Path], object], n_changes: int, change: str
) -> None:
    path, older = tmp_path / "home" / "registry.db", tmp_path / "older.db"
    registry = filled(path)
    _checkpoint(path)
    copy(path, older)
    for n in range(n_changes):
        if change == "put":
            put(registry, f"new-{n}", GOLDEN["low_rank"])
        elif change == "delete":
            registry.delete("last") or put(registry, "last", GOLDEN["zero_shot"])
        else:
            registry.set_tags("last", [f"tag-{n}"])
    _checkpoint(path)
    registry.count()
    shutil.copyfile(older, path)
    try:
        for access in (registry.count, lambda: registry.set_tags("last", ["eu"])):
            with pytest.raises(NotReady, match="was overwritten with an older copy while"):
                access()
        assert older.read_bytes() == path.read_bytes()
    finally:
        registry._db.close()


def changed_since_a_copy(folder: Path, n_changes: int) -> tuple[Registry, Path, Path]:
    """Return a registry with its file, which has all changes, and a copy of before them."""
    path, older = folder / "home" / "registry.db", folder / "older.db"
    registry = filled(path)
    _checkpoint(path)
    shutil.copyfile(path, older)
    for n in range(n_changes):
        registry.set_tags("last", [f"tag-{n}"])
    _checkpoint(path)
    return registry, path, older


@pytest.mark.parametrize("n_changes", [1, 2, 3, 5, 30])
def test_an_older_copy_that_is_laid_over_during_a_read_is_noticed(
    tmp_path: Path, n_changes: int
) -> None:
    registry, path, older = changed_since_a_copy(tmp_path, n_changes)

    def read(connection: sa.Connection) -> int:
        shutil.copyfile(older, path)
        return read_revision(connection)

    with pytest.raises(NotReady):
        registry._db.read(read)
    registry._db.close()


@pytest.mark.parametrize("n_changes", [1, 2, 3, 5, 30])
def test_an_older_copy_is_noticed_although_its_time_and_size_are_those_of_the_newer_file(
    tmp_path: Path, n_changes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes within one step of the clock have the same time."""
    monkeypatch.setattr(sqlite_file, "SETTLED_NS", 10**12)
    registry, path, older = changed_since_a_copy(tmp_path, n_changes)
    registry.count()
    before = path.stat()
    shutil.copyfile(older, path)
    os.truncate(path, before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(NotReady, match="was overwritten with an older copy while"):
        registry.count()
    registry._db.close()


def test_no_connection_of_a_pool_creates_a_file_in_place_of_a_deleted_one(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    registry = filled(path)
    path.unlink()
    answered: list[str] = []

    def upload(n: int) -> None:
        try:
            answered.append(put(registry, f"new-{n}", GOLDEN["low_rank"]))
        except NotReady:
            return

    threads = [threading.Thread(target=upload, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry._db.close()

    assert not answered
    assert not path.exists()


def test_a_file_that_is_put_back_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    registry = filled(path)
    path.rename(tmp_path / "elsewhere.db")
    with pytest.raises(NotReady, match="was deleted or moved while the service was running"):
        put(registry, "more", GOLDEN["low_rank"])

    (tmp_path / "elsewhere.db").rename(path)

    put(registry, "more", GOLDEN["low_rank"])
    assert registry.count() == N_TASKS + 2
    registry._db.close()


@pytest.mark.parametrize("statement", ["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"])
def test_maintenance_by_another_program_is_no_harm(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "registry.db"
    registry = filled(path, features=bytes(900_000))
    for n in range(N_TASKS):
        registry.delete(f"task-{n}")
    other = sqlite3.connect(path)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    before = path.stat().st_size
    other.execute(statement)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    other.close()
    assert (path.stat().st_size < before) == (statement == "VACUUM")

    put(registry, "more", GOLDEN["low_rank"])

    assert registry.count() == 2
    registry._db.close()


def test_many_changes_through_several_checkpoints_are_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    registries = [Registry(Database(f"sqlite:///{path}")) for _ in range(2)]
    for n in range(60):
        registries[n % 2].put(new(f"task-{n}", GOLDEN["low_rank"], bytes(300_000 + n)))
        registries[n % 2].delete(f"task-{n}")

    assert registries[0].revision() == 120
    for registry in registries:
        registry._db.close()


@pytest.mark.parametrize("megabytes", [1, 2, 3, 4, 6])
def test_a_checkpoint_of_another_thread_is_no_harm(tmp_path: Path, megabytes: int) -> None:
    """It copies pages into the main file, which is no database meanwhile."""
    registry = Registry(Database(f"sqlite:///{tmp_path / 'registry.db'}"), keep_versions=2)
    names = ("low_rank", "zero_shot", "ragged", "deep", "codebook_1")
    done = threading.Event()
    faults = []

    def read() -> None:
        while not done.is_set():
            try:
                registry.revision()
            except NotReady as error:
                faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for n in range(10):
            features = bytes([n + 1]) * (megabytes * 2**20)
            registry.put(new(f"task-{n % 3}", GOLDEN[names[n % 5]], features))
    finally:
        done.set()
        for reader in readers:
            reader.join()
        registry._db.close()
    assert not faults


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277, 0o027])
def test_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "home" / "registry.db"
    before = os.umask(umask)
    try:
        registry = filled(path)
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [path.parent, *path.parent.iterdir()]}
    registry._db.close()

    assert modes == {
        "home": 0o700,
        "registry.db": 0o600,
        "registry.db-wal": 0o600,
        "registry.db-shm": 0o600,
    }


@pytest.mark.parametrize("mode", [0o1777, 0o1755, 0o1770, 0o1707, 0o1775])
def test_a_shared_folder_and_what_is_no_registry_are_left_alone(tmp_path: Path, mode: int) -> None:
    shared, path = tmp_path / "shared", tmp_path / "shared" / "registry.db"
    shared.mkdir()
    path.symlink_to("/dev/null")
    before = Path("/dev/null").stat().st_mode
    shared.chmod(mode)

    assert make_private(shared, path) == []
    assert make_private(Path("/dev/null"), Path("/dev/null/registry.db")) == []
    path.unlink()
    path.touch(mode=0o600)
    assert make_private(shared, path) == []
    assert stat.S_IMODE(shared.stat().st_mode) == mode
    assert Path("/dev/null").stat().st_mode == before


@pytest.mark.parametrize("mode", [0o644, 0o664, 0o666, 0o640, 0o604])
def test_an_existing_home_is_made_private_once(tmp_path: Path, mode: int) -> None:
    home, path = tmp_path, tmp_path / "registry.db"
    registry = filled(path)
    home.chmod(mode | 0o111)
    path.chmod(mode)
    _beside(path, "-wal").chmod(mode)

    mended = make_private(home, path)

    assert mended == [home, path, _beside(path, "-wal")]
    assert make_private(home, path) == []
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    registry._db.close()
