"""Workers and their supervisor: hangs, kills, and a stop while clients do what they like."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from prompt_serve.service.server.heartbeat import FOLDER
from tests.service.process import Served, service

_WORKER = "_bentoml_impl.worker.service"

pytestmark = [pytest.mark.serve, pytest.mark.slow, pytest.mark.long]


def _workers(served: Served) -> set[int]:
    found = psutil.Process(served.process.pid).children()
    return {one.pid for one in found if _runs(one.pid) and _WORKER in one.cmdline()}


def _until(condition: Callable[[], bool], timeout_s: float = 90) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_a_hung_worker_is_replaced_and_workers_end_with_their_supervisor(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with service(tmp_path, tiny_bundle, workers="2", worker_timeout_s="8") as served:
        _until(lambda: len(_workers(served)) == 2)
        before = _workers(served)
        _until(lambda: all(_beats(pid) for pid in before))
        hung = min(before)
        os.kill(hung, signal.SIGSTOP)

        _until(lambda: hung not in _workers(served))
        _until(lambda: len(_workers(served)) == 2)
        _until(lambda: all(_beats(pid) for pid in _workers(served)))
        assert f"replaces worker {hung}" in served.log.read_text()
        for _ in range(20):
            assert httpx.get(f"{served.url}/v1/info", timeout=30).status_code == 200

        left = _workers(served)
        served.process.kill()
        served.process.wait()
        _until(lambda: not any(psutil.pid_exists(pid) and _runs(pid) for pid in left))


def _beats(pid: int) -> bool:
    return (Path(psutil.Process(pid).environ()[FOLDER]) / str(pid)).exists()


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_stop_answers_everyone_who_was_connected_and_resets_nobody(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with service(tmp_path, tiny_bundle) as served:
        outcomes: Counter[str] = Counter()
        stopped = threading.Event()

        def ask() -> None:
            while not stopped.is_set():
                outcome = _one_request(served.url)
                outcomes[outcome] += 1
                if outcome == "refused":
                    return

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        _until(lambda: outcomes["answered"] > 50)
        served.process.terminate()
        served.process.wait(60)
        stopped.set()
        for thread in threads:
            thread.join(60)

    assert set(outcomes) <= {"answered", "refused"}, outcomes


def _one_request(url: str) -> str:
    address = urlsplit(url)
    try:
        connection = socket.create_connection((str(address.hostname), int(address.port or 0)), 30)
    except ConnectionRefusedError:
        return "refused"
    with connection:
        try:
            connection.sendall(
                b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            received = b""
            while data := connection.recv(65_536):
                received += data
        except ConnectionError as error:
            return type(error).__name__
    return "answered" if received.startswith(b"HTTP/1.1 200") else f"nothing: {received[:40]!r}"


def test_a_stop_ends_whatever_clients_do(tiny_bundle: Path, tmp_path: Path) -> None:
    with service(tmp_path, tiny_bundle, shutdown_timeout_s="2") as served:
        address = urlsplit(served.url)
        host = (str(address.hostname), int(address.port or 0))
        unfinished = [
            b"",
            b"GET /li",
            b"PUT /v1/tasks/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc",
            b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100,  # never read
        ]
        connections = [socket.create_connection(host, timeout=30) for _ in unfinished]
        for connection, sent in zip(connections, unfinished, strict=True):
            connection.sendall(sent)
        assert httpx.get(f"{served.url}/livez", timeout=30).status_code == 200
        served.process.terminate()
        served.process.wait(60)
        for connection in connections:
            connection.close()
    assert served.process.returncode == 0
