"""Requests as bytes: what RFC 9112 leaves to the server is refused where parsers could differ."""

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psutil
import pytest

from tests.service.process import Served

pytestmark = [pytest.mark.serve, pytest.mark.slow]

HOST = b"Host: localhost\r\n"
HEADERS = b"".join(b"X-%d: 1\r\n" % n for n in range(4_000))
POST = b"POST /v1/score HTTP/1.1\r\n%sContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"


def _connect(served: Served) -> socket.socket:
    address = urlsplit(served.url)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=30)


def _exchange(served: Served, *parts: bytes) -> bytes:
    """Send bytes; return all that comes until the server closes the connection."""
    with _connect(served) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while data := connection.recv(65_536):
            received += data
        return received


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"POST /v1/score HTTP/1.1\r\n%sContent-Length: 5\r\n" + CHUNKED, 400),
        (b"GET /livez HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n%sContent-Length: 0\r\n" + CHUNKED, 400),
        (b"POST /v1/score HTTP/1.0\r\n%s" + CHUNKED, 400),
        (b"GET http://other/livez HTTP/1.1\r\n%s\r\n", 400),
        (b"POST /v1/score HTTP/1.1\r\n%sTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /v1/score HTTP/1.1\r\n%sTransfer-Encoding: chunked, chunked\r\n\r\n", 501),
        (b"POST /v1/score HTTP/1.1\r\n%sContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (b"POST /v1/score HTTP/1.1\r\n%sContent-Length: +5\r\n\r\nabcde", 400),
        (b"POST /v1/score HTTP/1.1\r\n%sContent-Length: 5, 6\r\n\r\nabcdef", 400),
        (b"GET /livez HTTP/1.1\n%s\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n%sX-A: b\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n%s\n", 400),
        (b"GET /livez HTTP/1.1\r\n%sX-A: b\nX-C: d\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n%sX-A : b\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n%sX-A: b\r\n folded\rC: d\r\n\r\n", 400),
        (b"GET /livez HTTP/2.0\r\n%s\r\n", 505),
        (b"GET /livez HTTP/0.9\r\n%s\r\n", 505),
        (b"GET /livez HTTP/3.7\r\n%s\r\n", 505),
        (b"GET /livez HTTP/11\r\n%s\r\n", 400),
        (b"GET /livez\r\n%s\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n%.0s", 400),
        (b"GET /livez HTTP/1.1\r\n%sHost: other\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01%s", 400),
        (b"GET /livez HTTP/1.1\r\n%sX-A: " + b"b" * 200_000 + b"\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\n%s" + b"A:\r\n" * 200 + b"\r\n", 431),
        (b"GET /livez HTTP/1.1\r\n%s" + HEADERS + b"\r\n", 431),
        (b"POST /v1/score HTTP/1.1\r\n%s" + HEADERS + CHUNKED, 431),
        (b"GET /livez HTTP/1.1\r\n%sX-A: b\r\n Transfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n%sX-A: b\r\n\tc\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n%sContent-Length:\r\n 0\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n Content-Length: 5\r\n%s\r\n", 400),
        (b"POST /v1/score HTTP/1.1\r\n%sTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_ambiguous_requests_are_answered_once_and_closed(
    served: Served, message: bytes, status: int
) -> None:
    smuggled = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = _exchange(served, message % HOST + smuggled)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"connection: close" in head.lower()
    assert b"application/problem+json" in head
    assert body.count(b"HTTP/1.1") <= 1  # of the text, not of a second answer
    assert b"backbone" not in body


@pytest.mark.parametrize(
    "body",
    [
        b"0\n\n", b"0\r\n\n", b"0\r\na: b\n\n", b"0\r\na: b\n\r\n", b"0\r\na: b\r\n\n",
        b"0\r\na: b\r\n c\r\n\r\n",
        b"0x0\r\n\r\n", b"-0\r\n\r\n", b" 0\r\n\r\n", b"5\r\nabcdeX0\r\n\r\n",
        b"5\r\nabcd\r\n0\r\n\r\n", b"\r\n0\r\n\r\n",
        b"1\r\na\r\n" * 9_000, b"1;a=b\r\na\r\n" * 9_000, b"30\r\n" + b"a" * 48 + b"\r\n", b"x",
    ],
)  # fmt: skip
def test_ambiguous_chunks_end_the_connection_and_nothing_fails(served: Served, body: bytes) -> None:
    before = served.log.read_text().count("Traceback")
    if body.startswith(b"30"):
        body *= 9_000
    smuggled = b"0\r\n\r\nGET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = _exchange(served, POST % HOST + CHUNKED[: -len(b"0\r\n\r\n")], body + smuggled)

    head, _, problem = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), answer[:300]
    assert b"connection: close" in head.lower()
    assert b"backbone" not in problem
    assert served.log.read_text().count("Traceback") == before


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize(
    ("start", "kind", "status"),
    [
        (b"POST /v1/score", b"image/png", 422),
        (b"POST /v1/none", b"image/png", 404),
        (b"GET /livez", b"text/plain", 200),
        (b"PUT /v1/info", b"text/plain", 405),
        (b"POST /v1/classify?task=a", b"multipart/form-data; boundary=b", 422),
    ],
)
def test_an_answer_before_the_end_of_a_large_body_is_not_lost(
    served: Served, start: bytes, kind: bytes, status: int, version: bytes
) -> None:
    body = b'--b\r\ncontent-disposition: form-data; name="task"\r\n\r\n' + bytes(20_000_000)
    lines = (
        start + b" HTTP/" + version, b"Host: localhost", b"Connection: close",
        b"Content-Type: " + kind, b"Content-Length: %d" % len(body), b"", b"",
    )  # fmt: skip

    answer = _exchange(served, b"\r\n".join(lines), body)
    assert answer.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 4096])
def test_bodies_of_chunks_are_read_whatever_their_size(served: Served, size: int) -> None:
    spaces = (b"%x\r\n%s\r\n" % (size, b" " * size)) * (60_000 // max(size, 40))
    answer = _exchange(
        served,
        POST % (HOST + b"Connection: close\r\n")
        + CHUNKED[: -len(b"0\r\n\r\n")]
        + spaces
        + b"2\r\n{}\r\n0\r\n\r\n",
    )

    assert answer.startswith(b"HTTP/1.1 422 ")  # of JSON without its fields
    assert b"embeddings" in answer


@pytest.mark.parametrize(
    "message",
    [
        b"GET /livez HTTP/1.1\r\n%sConnection: close\r\n\r\n",
        b"\r\nGET /livez HTTP/1.1\r\n%sConnection: close\r\n\r\n",
        b"\r\n\r\nGET /livez HTTP/1.1\r\n%sConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.2\r\n%sConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.0\r\n%s\r\n",
        b"GET http://localhost/livez HTTP/1.1\r\n%sConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n%sConnection: close\r\n" + b"A: 1\r\n" * 198 + b"\r\n",
    ],
)
def test_unusual_but_valid_requests_are_answered(served: Served, message: bytes) -> None:
    whole = message % HOST
    assert _exchange(served, whole).startswith(b"HTTP/1.1 200 ")
    byte_by_byte = [whole[n : n + 1] for n in range(len(whole))]
    assert _exchange(served, *byte_by_byte).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_their_order(served: Served) -> None:
    first = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = _exchange(served, first + first + last)

    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert b"backbone" in answer[answer.rindex(b"HTTP/1.1 200 ") :]


@pytest.mark.long
def test_connections_end_that_are_idle_or_do_not_finish_their_headers(served: Served) -> None:
    whole = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(_connect(served)) for _ in range(4)]
        for connection, sent in zip(connections, (b"", whole[:9], whole[:30], whole), strict=True):
            connection.sendall(sent)
        received = [b""] * 4
        for n, connection in enumerate(connections):  # each within the socket's timeout
            with contextlib.suppress(ConnectionResetError):
                while data := connection.recv(65_536):
                    received[n] += data

    assert received[:3] == [b""] * 3
    assert received[3].startswith(b"HTTP/1.1 200 ")


@pytest.mark.long
def test_empty_lines_do_not_keep_a_connection_open(served: Served) -> None:
    whole = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lines = (b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n\n")
    _all_until_closed(served, [(sent, line) for sent in (b"", whole) for line in lines])


@pytest.mark.long
def test_a_body_whose_request_was_answered_does_not_keep_a_connection_open(
    served: Served,
) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    heads = (head + b"Content-Length: 1000000\r\n\r\n", head + CHUNKED[: -len(b"0\r\n\r\n")])
    bodies = ((b"", b""), (b"a", b"1\r\na\r\n"), (bytes(500_000), b"%x\r\n%s\r\n" % (9, bytes(9))))
    received = _all_until_closed(
        served,
        [
            (start + body[chunked], trickle)
            for chunked, start in enumerate(heads)
            for body in bodies
            for trickle in (b"", b"a", b"1\r\na\r\n")
        ],
    )
    assert all(answer.startswith(b"HTTP/1.1 422 ") for answer in received)


def _all_until_closed(served: Served, sent: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Send bytes on a connection each, then others every 0.5 s until the service closes it."""
    with ThreadPoolExecutor(len(sent)) as pool:
        return list(pool.map(lambda one: _until_closed(served, *one), sent))


def _until_closed(served: Served, sent: bytes, trickle: bytes) -> bytes:
    give_up = time.monotonic() + 90  # the service allows 10 s
    received = b""
    with _connect(served) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        connection.settimeout(0.5)
        while time.monotonic() < give_up:
            try:
                if not (data := connection.recv(65_536)):
                    return received
                received += data
            except TimeoutError:
                connection.sendall(trickle)
        pytest.fail(f"The connection is still open after {sent[:200]!r} and {trickle!r}.")
    return received


@pytest.mark.long
def test_a_client_that_does_not_read_is_cut(served: Served) -> None:
    address = urlsplit(served.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((str(address.hostname), int(address.port or 0)))
        # More than the system's buffers take.
        connection.sendall(b"GET /v1/openapi.json HTTP/1.1\r\n%s\r\n" % HOST * 400)
        port = connection.getsockname()[1]
        give_up = time.monotonic() + 150
        held = False
        # The system keeps what it has for the client; the service must not.
        while (holds := port in _ports_of_clients(served)) or not held:
            held = held or holds
            assert time.monotonic() < give_up
            time.sleep(0.2)


def _ports_of_clients(served: Served) -> set[int]:
    workers = psutil.Process(served.process.pid).children()
    connections = [one for worker in workers for one in worker.net_connections("tcp")]
    return {one.raddr.port for one in connections if one.raddr}


@pytest.mark.parametrize("sent", [b"", b'{"embeddings": [['])
def test_a_body_that_does_not_come_ends_at_the_deadline(served: Served, sent: bytes) -> None:
    head = (
        b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"X-Request-Timeout-Ms: 300\r\nContent-Length: 1000\r\n\r\n"
    )
    answer = _exchange(served, head + sent)

    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"connection: close" in answer.lower()
    assert b"deadline-exceeded" in answer
