"""A start is never silent for long: lines until a worker answers, also without a terminal."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from prompt_serve.service.startup_progress import print_until, wait_for_answer
from tests.service.process import Served


@contextmanager
def probed(statuses: list[int], *, accepts_after_s: float = 0.0) -> Iterator[tuple[str, int]]:
    """A server that answers its probe with these statuses, the last one again and again."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)  # the socket listens, nobody accepts yet

    def serve() -> None:
        time.sleep(accepts_after_s)
        server.serve_forever(0.02)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield "127.0.0.1", server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def lines_of_a_start(address: tuple[str, int]) -> list[str]:
    lines: list[str] = []
    answered = threading.Event()
    waiting = threading.Thread(target=wait_for_answer, args=(address, answered), daemon=True)
    started = time.monotonic()
    waiting.start()
    print_until(answered, lambda: time.monotonic() - started, lines.append, tick_s=0.1)
    return lines


@pytest.mark.parametrize("accepts_after_s", [0.35, 0.75])
def test_a_slow_start_is_counted_and_its_end_is_told(accepts_after_s: float) -> None:
    with probed([HTTPStatus.OK], accepts_after_s=accepts_after_s) as address:
        lines = lines_of_a_start(address)

    assert len(lines) >= accepts_after_s / 0.1 - 1
    assert all(line.startswith("prompt-serve is starting: ") for line in lines[:-1])
    assert lines[-1].startswith("prompt-serve is ready after ")


def test_a_quick_start_is_one_line() -> None:
    with probed([HTTPStatus.OK]) as address:
        lines = lines_of_a_start(address)

    assert lines == ["prompt-serve is ready after 0 s."]


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_worker_that_is_not_ready_is_waited_for(status: int) -> None:
    statuses = [status, status, int(HTTPStatus.OK)]
    with probed(statuses) as address:
        lines_of_a_start(address)

    assert statuses == [HTTPStatus.OK]


def test_a_port_that_nobody_listens_on_yet_is_tried_again() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    answered = threading.Event()
    threading.Thread(target=wait_for_answer, args=(address, answered), daemon=True).start()

    assert not answered.wait(0.5)
    with socket.create_server(address) as server:
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100).startswith(b"GET /readyz ")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert answered.wait(5)


@pytest.mark.serve
@pytest.mark.slow
def test_the_log_of_a_first_start_says_what_happens(served: Served) -> None:
    give_up = time.monotonic() + 30
    while "prompt-serve is ready after " not in (log := served.log.read_text()):
        assert time.monotonic() < give_up
        time.sleep(0.05)

    start, _, rest = log.partition("prompt-serve is ready after ")
    assert (
        "loads the backbone tiny in 1 worker. This usually takes 5 to 30 s."
        in (start.splitlines()[0])
    )
    assert "WARNING" not in start
    assert "prompt-serve is ready after " not in rest
