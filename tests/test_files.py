"""Atomic writes: the old content or the whole new one, and nothing else in the folder."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prompt_serve.files import atomic_file, atomic_folder, check_writable, sha256_of_file


def write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def interrupt_file(path: Path, interruption: type[BaseException]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("half of the n")
        raise interruption


def interrupt_folder(path: Path) -> None:
    with atomic_folder(path, mode=0o755) as folder:
        (folder / "new").write_text("half of the n")
        raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_and_its_folders_are_created(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "file.txt", "new")

    assert (tmp_path / "a" / "b" / "file.txt").read_text() == "new"
    assert names(tmp_path / "a" / "b") == ["file.txt"]


@pytest.mark.parametrize("sync", [False, True])
def test_an_existing_file_is_replaced(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_file(path, sync=sync) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"

    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_keeps_the_old_file(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    with pytest.raises(interruption):
        interrupt_file(path, interruption)

    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_an_interrupted_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt_file(tmp_path / "file.txt", KeyboardInterrupt)

    assert names(tmp_path) == []


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    script = (
        "import sys, time; from pathlib import Path; from prompt_serve.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half of the n'); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)])
    deadline = time.monotonic() + 30
    while not any(p.read_text() == "half of the n" for p in tmp_path.glob("*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert path.read_text() == "old"
    (leftover,) = tmp_path.glob("*.tmp")
    assert leftover.name.startswith(".file.txt.")


def test_concurrent_writers_leave_the_whole_file_of_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    contents = [str(digit) * 100_000 for digit in range(10)]

    def write_and_read(content: str) -> bool:
        write(path, content)
        return path.read_text() in contents

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, contents * 10))
    assert names(tmp_path) == ["file.txt"]


def test_an_unwritable_folder_is_an_error_that_names_the_target(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "inside.txt", "new")
    unwritable = Path("/proc/name")  # also for root
    with pytest.raises(OSError, match=r"'/proc/name'$") as caught:
        write(unwritable, "new")
    assert caught.value.filename == "/proc/name"
    with pytest.raises(OSError, match=r"'/proc/name'$"), atomic_folder(unwritable, mode=0o755):
        pass


def test_a_folder_in_place_of_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(OSError, match="folder"):
        write(tmp_path / "folder", "new")

    assert names(tmp_path) == ["folder"]


@pytest.mark.usefixtures("umask")
def test_permissions_are_the_umasks_or_those_asked_for(tmp_path: Path) -> None:
    for mode, expected in ((None, 0o640), (0o644, 0o644), (0o600, 0o600)):
        with atomic_file(tmp_path / "file", mode=mode) as temporary:
            temporary.write_text("new")
            # Nobody else reads what may be private before its permissions are set.
            assert temporary.stat().st_mode & 0o777 == (0o640 if mode is None else 0o600)
        assert (tmp_path / "file").stat().st_mode & 0o777 == expected
    with atomic_folder(tmp_path / "folder", mode=0o755) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_a_symbolic_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")

    write(tmp_path / "link", "new")

    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"
    assert (tmp_path / "target").read_text() == "old"


@pytest.mark.parametrize("name", ["n" * 255, "\N{SNOWMAN}" * 85])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "new")

    assert names(tmp_path) == [name]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder"
    for text in ("old", "new"):
        with atomic_folder(path, mode=0o755) as folder:
            (folder / text).write_text(text)

    assert names(path) == ["new"]
    assert names(path.parent) == ["folder"]


def test_an_interrupted_folder_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")

    with pytest.raises(KeyboardInterrupt):
        interrupt_folder(path)

    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_take_the_name_gives_it_back_to_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise PermissionError(f"cannot rename {self}")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with (
        pytest.raises(PermissionError, match="cannot rename"),
        atomic_folder(path, mode=0o755) as folder,
    ):
        (folder / "new").write_text("new")

    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(data)

    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_path_that_takes_no_file_is_noticed_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    with pytest.raises(NotADirectoryError) as found:
        check_writable(tmp_path / "file" / "a" / "b.html")
    assert found.value.filename == str(tmp_path / "file" / "a" / "b.html")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "missing" / "folder" / "b.html")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"
