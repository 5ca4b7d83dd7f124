"""A server's processes: started for a turn, stopped after it, and nothing of them left.

A worker may have a session of its own (BentoML's have) or outlive the process that started it. Both
inherit the environment, so a mark in it tells what belongs to a server; the process group tells it
where a child was given another environment.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.service.process import ROOT, free_port

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 15.0
KILL_TIMEOUT_S = 15.0
_MARK = "PEER_MARK"


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready.

    Args:
        port: it listens on.
        group: its process group.
        mark: in the environment of its processes.
        start_s: from its start until it was ready.
    """

    port: int
    group: int
    mark: str
    start_s: float

    @property
    def memory(self) -> int:
        """Bytes of all its processes; what they share counts once."""
        total = 0
        for one in processes(self.group, self.mark):
            with contextlib.suppress(psutil.Error):
                total += one.memory_full_info().pss
        return total


@contextlib.contextmanager
def running(
    command: Callable[[int], Sequence[str]],
    variables: dict[str, str],
    log: Path,
    ready: str,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[RunningServer]:
    """Run a server until the block ends; gives it once it is ready.

    Args:
        command: the server's command for a port.
        variables: its environment.
        log: file of its output, replaced.
        ready: path that answers 200 once the server is ready.
        start_timeout_s: time to become ready.

    Raises:
        RuntimeError: the server ended or was not ready in time, or something of it is left.
    """
    port, mark = free_port(), uuid.uuid4().hex
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(port),
            cwd=ROOT,
            env={**variables, _MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}{ready}", log, start_timeout_s)
        yield RunningServer(port, process.pid, mark, time.monotonic() - started)
    finally:
        stop_all(process, mark)
        check_free(port)


def wait_until_ready(
    process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float
) -> None:
    give_up = time.monotonic() + timeout_s
    while (left_s := give_up - time.monotonic()) > 0:
        if process.poll() is not None:
            raise RuntimeError(f"ended with status {process.returncode}: {last_line(log)}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=min(10, left_s)).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"not ready within {timeout_s:g} s: {last_line(log)}")


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:150] if lines else "no output"


def stop_all(process: subprocess.Popen[bytes], mark: str) -> None:
    """Stop a server as by Ctrl-C, then kill what is left of it.

    Raises:
        RuntimeError: something survives SIGKILL.
    """
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    give_up = time.monotonic() + KILL_TIMEOUT_S
    while left := processes(process.pid, mark):
        if time.monotonic() > give_up:
            raise RuntimeError(f"still there after SIGKILL: {', '.join(map(str, left))}")
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        time.sleep(0.02)
    process.wait()


def processes(group: int, mark: str) -> list[psutil.Process]:
    """Return the processes of a group, and those with the mark in their environment."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if one.status() != psutil.STATUS_ZOMBIE and (
                os.getpgid(one.pid) == group or one.environ().get(_MARK) == mark
            ):
                found.append(one)
    return found


def check_free(port: int, patience_s: float = 10.0) -> None:
    """Wait until nothing uses a port.

    Args:
        patience_s: connections whose end the other side has not seen yet go within moments.

    Raises:
        RuntimeError: something still uses it.
    """
    give_up = time.monotonic() + patience_s
    while True:
        with socket.socket() as sock:
            # Connections that were closed a moment ago do not count.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                return
            except OSError as error:
                if time.monotonic() > give_up:
                    raise RuntimeError(f"port {port} is still in use: {error.strerror}") from error
        time.sleep(0.05)
