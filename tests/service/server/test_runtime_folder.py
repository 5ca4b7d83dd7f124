"""The folder that a service's processes share is gone with them, whatever ends them."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from prompt_serve.service.server.runtime_folder import PREFIX, remove_leftovers
from tests.service.process import environment, refused_start, service
from tests.service.test_faults import wait_for, workers
from tests.service.test_health import small_disk

# Prints its folder and the process that holds it as a worker does, then waits for a line.
SUPERVISOR = """
import subprocess, sys
from prompt_serve.service.server import runtime_folder

folder = runtime_folder.create()
worker = subprocess.Popen(
    [sys.executable, "-c", '''if True:
        import sys
        from prompt_serve.service.server import runtime_folder
        runtime_folder.hold()
        print(flush=True)
        sys.stdin.read()'''],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdout.readline()
print(folder, worker.pid, flush=True)
sys.stdin.readline()
worker.communicate()
"""


@contextmanager
def supervisor(base: Path) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """Start a process with a folder below ``base``, and a second one that holds it as well."""
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR],
        env=os.environ | {"TMPDIR": str(base)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        folder, worker = process.stdout.readline().split()
        try:
            yield process, Path(folder), int(worker)
        finally:
            process.kill()
            with suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGKILL)


def test_it_is_private_and_taken_along_at_the_end(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, folder, _):
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        process.communicate("end\n", timeout=60)
    assert process.returncode == 0
    assert not list(tmp_path.iterdir())


def test_it_stays_as_long_as_one_process_of_the_service_lives(tmp_path: Path) -> None:
    with supervisor(tmp_path) as (process, folder, worker):
        (folder / "metrics").mkdir()
        (folder / "metrics" / "counter.db").write_bytes(b"1")
        remove_leftovers(tmp_path)
        assert folder.exists()

        os.kill(worker, signal.SIGSTOP)  # it would end with its parent's pipe
        process.kill()
        process.wait()
        remove_leftovers(tmp_path)
        assert (folder / "metrics" / "counter.db").exists()

        os.kill(worker, signal.SIGKILL)

        def is_removed() -> bool:
            remove_leftovers(tmp_path)
            return not folder.exists()

        wait_for("its removal", is_removed)


def _link_to_a_leftover(base: Path) -> Path:
    (base / "elsewhere").mkdir()
    (base / f"{PREFIX}x").symlink_to(base / "elsewhere")
    return base / "elsewhere"


def _file(base: Path) -> Path:
    (base / f"{PREFIX}x").touch()
    return base / f"{PREFIX}x"


def _other_name(base: Path) -> Path:
    (base / "prompt-serve-x").mkdir()
    return base / "prompt-serve-x"


def _being_made(base: Path) -> Path:
    (base / f".{PREFIX}x").mkdir()
    return base / f".{PREFIX}x"


def _of_another_user(base: Path) -> Path:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    (base / f"{PREFIX}x").mkdir()
    os.chown(base / f"{PREFIX}x", 12345, 12345)
    return base / f"{PREFIX}x"


@pytest.mark.parametrize(
    "make", [_link_to_a_leftover, _file, _other_name, _being_made, _of_another_user]
)
def test_nothing_else_is_removed(make: Callable[[Path], Path], tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}left").mkdir()
    other = make(tmp_path)

    remove_leftovers(tmp_path)

    assert other.exists()
    assert not (tmp_path / f"{PREFIX}left").exists()


@pytest.mark.serve
@pytest.mark.long
def test_a_full_folder_for_temporary_files_stops_the_start(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "200k") as disk:
        settings = environment(tmp_path / "home", tiny_bundle)
        output = refused_start(settings | {"TMPDIR": str(disk)})

        assert output.count("The folder for temporary files cannot be used: [Errno 28]") == 1
        assert not list(disk.glob("[!.]*"))


@pytest.mark.serve
@pytest.mark.long
def test_the_next_start_removes_what_a_killed_service_left(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))

    def folders() -> set[Path]:
        return {path for path in temporary.iterdir() if path.is_dir()}

    with (
        service(tmp_path / "other", tiny_bundle) as other,
        service(tmp_path / "killed", tiny_bundle, workers="2") as killed,
    ):
        both = folders()
        assert len(both) == 2  # all that they and BentoML have there
        processes = workers(killed)
        killed.process.send_signal(signal.SIGSTOP)  # or it would start others
        for process in processes:
            process.kill()
        killed.process.kill()
        killed.process.wait()
        psutil.wait_procs(processes)
        assert folders() == both

        with service(tmp_path / "next", tiny_bundle):
            assert len(folders()) == 2
            assert len(both & folders()) == 1
            assert httpx.get(f"{other.url}/readyz").status_code == 200
    assert not folders()
