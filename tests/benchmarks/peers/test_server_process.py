"""A server of the benchmark is ready when it says so, and nothing of it outlives its turn."""

import socket
import time
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.peers import server_process
from benchmarks.peers.server_process import RunningServer, check_free
from tests.benchmarks.peers.small_peers import start
from tests.benchmarks.peers.small_server import BALLAST

WITH_CHILDREN = (
    "child",
    "child in a session of its own",
    "child without the environment",
    "orphan in a session of its own",
    "child that holds the port",
)


def test_a_server_runs_until_the_block_ends(tmp_path: Path) -> None:
    with start("good", tmp_path / "log") as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/").status_code == 200
        assert psutil.Process(server.group).is_running()
        assert 2**20 < server.memory < BALLAST
        assert 0 < server.start_s < 30

    assert not runs(server.group)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{server.port}/")


def test_every_start_has_a_process_of_its_own(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        with start("good", tmp_path / "log") as server:
            found.append((server.group, server.mark))

    assert len(set(found)) == 2


@pytest.mark.parametrize("kind", WITH_CHILDREN)
def test_children_are_counted_and_end_with_the_server(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start(kind, log) as server:
        child = int(log.read_text())
        assert runs(child)
        assert holds_the_ballast(server)

    assert not runs(child)
    assert not runs(server.group)
    check_free(server.port)


@pytest.mark.parametrize("kind", WITH_CHILDREN)
def test_children_end_when_the_measurement_fails(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ZeroDivisionError), start(kind, log):
        raise ZeroDivisionError

    assert not runs(int(log.read_text()))


def test_a_server_that_ignores_ctrl_c_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "STOP_TIMEOUT_S", 0.2)
    with start("ignores Ctrl-C", tmp_path / "log") as server:
        pass

    assert not runs(server.group)


def test_a_server_that_dies_says_why(tmp_path: Path) -> None:
    expected = r"^ended with status 3: no weights \| in <the folder>$"
    with pytest.raises(RuntimeError, match=expected), start("dies at start", tmp_path / "log"):
        pass


@pytest.mark.parametrize("kind", ["never ready", "does not listen", "silent"])
def test_a_server_that_is_never_ready_is_stopped(kind: str, tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    expected = r"^not ready within 0\.5 s: no output$"
    with pytest.raises(RuntimeError, match=expected), start(kind, tmp_path / "log", 0.5):
        pass

    assert set(psutil.Process().children()) <= before


def test_a_program_that_is_missing_is_an_oserror(tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    with (
        pytest.raises(FileNotFoundError, match="nothing"),
        server_process.running(lambda port: [nothing], {}, tmp_path / "log", "/"),
    ):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_where_something_listens_is_not_free(address: str) -> None:
    with socket.create_server((address, 0)) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {port} is still in use"):
            check_free(port, patience_s=0.2)

    check_free(port)


def runs(pid: int) -> bool:
    """Return False for a process that ended; a zombie holds neither memory nor ports."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def holds_the_ballast(server: RunningServer) -> bool:
    """Wait until a child has what it allocates at its start."""
    give_up = time.monotonic() + 30
    while server.memory < BALLAST and time.monotonic() < give_up:
        time.sleep(0.02)
    return server.memory >= BALLAST
