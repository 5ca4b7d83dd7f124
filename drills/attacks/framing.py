"""Attacks by bytes: what two parsers could frame differently (RFC 9112), and any headers."""

import random
from functools import partial

from drills.attacks.kind import Kind, Target, together

_HIDDEN = b"DELETE /v1/tasks/hidden HTTP/1.1\r\nhost: localhost\r\n\r\n"
_NAMES = (
    b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade", b"te",
    b"trailer", b"content-encoding", b"content-type", b"accept", b"authorization", b"x-api-key",
    b"x-request-timeout-ms", b"x-request-id", b"traceparent", b"tracestate", b"baggage", b"origin",
    b"sec-fetch-site", b"cookie", b"range", b"if-match", b"if-none-match", b"x-forwarded-for",
    b"x-forwarded-host", b"x-forwarded-proto", b"forwarded", b"accept-encoding", b"via", b"x-a",
)  # fmt: skip
_VALUES = (
    b"", b" ", b"0", b"-1", b"+5", b"5, 5", b"5 ", b"0x5", b"5_0", b"18446744073709551616",
    b"9" * 21, b"9" * 5_000, b"\xb2", b"chunked", b"Chunked", b" chunked", b"chunked, identity",
    b"identity", b"gzip, chunked", b"\x0bchunked", b"chunked;q=1", b"100-continue", b"200-ok",
    b"close", b"keep-alive", b"upgrade, http2-settings", b"h2c", b"websocket", b"TLS/1.0",
    b"localhost", b"evil.example", b"127.0.0.1:1", b"[::1]", b"\xff\xfe", b"a\tb", b"*/*;q=nan",
    b"application/json", b"multipart/form-data; boundary=" + b"x" * 300, b"image/png", b"null",
    b"1", b"999999999", b"1e3", b"bytes=0-,0-,0-", b'"' * 999, b"Basic " + b"A" * 9_000,
    b"Bearer " + b"." * 5_000, b"=?utf-8?q?a?=", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
)  # fmt: skip
_PATHS = (
    b"/livez", b"/v1/score", b"/v1/info", b"/v1/tasks", b"/", b"*", b"//livez",
    b"/livez?a=" + b"b" * 3_000,
    b"http://localhost/livez", b"http://evil.example/livez", b"localhost:80", b"/%00", b"/a b",
    b"/livez#x", b"/..%2f..", b"/\xff", b"/v1/tasks/%ff", b"?", b"",
)  # fmt: skip
_LINES = (b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\0\r\n")
_METHODS = (
    b"GET",
    b"POST",
    b"HEAD",
    b"PUT",
    b"get",
    b"CONNECT",
    b"TRACE",
    b"PRI",
    b"OPTIONS",
    b"G T",
    b"",
    b"A" * 500,
)
_VERSIONS = (b"HTTP/1.1",) * 6 + (
    b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.9", b"HTTP/1,1", b"http/1.1", b"HTTP/ 1.1", b"",
    b"HTTP/11",
)  # fmt: skip


async def _ambiguous(target: Target, draws: random.Random, count: int) -> None:
    """Hide a request in others; if it is run, the task that it deletes is gone."""
    await _make_task(target)
    for start in range(0, count, 20):
        some = [_hiding(draws) for _ in range(min(20, count - start))]
        await together((_probe(target, message) for message in some), at_once=20)
        if not await _has_task(target):
            await _find_run(target, some)


async def _find_run(target: Target, messages: list[bytes]) -> None:
    for message in messages:
        await _make_task(target)
        await _probe(target, message)
        if not await _has_task(target):
            target.fault("wrong", f"a hidden request was run: {message!r}")
    await _make_task(target)


async def _has_task(target: Target) -> bool:
    answer = await target.ask("GET", "/v1/tasks/hidden", name="the task that is not deleted")
    return answer.status_code == 200


async def _make_task(target: Target) -> None:
    await target.ask(
        "POST",
        "/v1/tasks",
        name="a task",
        content=b'{"name": "hidden", "class_names": ["a", "b"]}',
        headers={"content-type": "application/json"},
    )


async def _probe(target: Target, message: bytes) -> None:
    answer = await target.send(message, "ambiguous", until_silence=True)
    if answer and not answer.startswith(b"HTTP/1.1 "):
        target.fault("wrong", f"{answer[:60]!r} is no answer; to {message[:200]!r}")


def _hiding(draws: random.Random) -> bytes:
    """Return a message that two parsers may frame differently, with a request in the rest."""
    return draws.choice((_of_two_lengths, _of_length_and_chunks, _of_unclear_chunks))(draws)


def _of_two_lengths(draws: random.Random) -> bytes:
    first, second = draws.sample((0, 5, 7, len(_HIDDEN), 5 + len(_HIDDEN)), 2)
    second_line = draws.choice(
        (b"content-length: %d", b"Content-Length:%d", b"content-length:\t%d")
    )
    one = draws.choice(
        (
            b"content-length: %d, %d" % (first, second),
            b"content-length: %d\r\n %d" % (first, second),
        )
        + (b"content-length: %d\r\n%s" % (first, second_line % second),) * 4
    )
    return _message(draws, [one], draws.choice((b"", b"abcde", b"0\r\n\r\n")))


def _of_length_and_chunks(draws: random.Random) -> bytes:
    length = b"content-length: %d" % draws.choice((0, 5, len(_HIDDEN), 5 + len(_HIDDEN)))
    chunked = draws.choice(
        (b"transfer-encoding: chunked", b"Transfer-Encoding:chunked",
         b"transfer-encoding : chunked", b"transfer-encoding: xchunked",
         b"transfer-encoding:\tchunked", b"transfer-encoding: chunked\t",
         b"x: y\r\n transfer-encoding: chunked", b"transfer-encoding:\r\n chunked",
         b"transfer-encoding: chunked\r\ntransfer-encoding: identity",
         b"x: y\ntransfer-encoding: chunked", b"x: y\rtransfer-encoding: chunked",
         b"transfer-encoding: chunked, chunked", b"transfer-encoding: \x0bchunked",
         b"transfer-encoding: identity, chunked", b"transfer-encoding: CHUNKED")
    )  # fmt: skip
    body = draws.choice((b"0\r\n\r\n", b"0;a=b\r\n\r\n", b"5\r\nabcde\r\n0\r\n\r\n", b"", b"abcde"))
    return _message(draws, [length, chunked], body)


def _of_unclear_chunks(draws: random.Random) -> bytes:
    body = draws.choice(
        (b"0\n\n", b"5\nabcde\n0\n\n", b"0x0\r\n\r\n", b"-0\r\n\r\n", b" 0\r\n\r\n", b"0\r\n\n",
         b"5\r\nabcdeX0\r\n\r\n", b"5\r\nabcde0\r\n\r\n", b"0\r\na: b\n\n", b"0\r\na: b\n\r\n",
         b"0\r\n a: b\r\n\r\n", b"0\r\na: b\r\n\n", b"0\n\r\n", b"0;a\n\r\n\r\n", b"+0\r\n\r\n",
         b"5\r\nabcd\r\n0\r\n\r\n", b"0_0\r\n\r\n", b"\r\n0\r\n\r\n", b"0\r\na : b\r\n\r\n",
         b"0" * 40 + b"\r\n\r\n", b"fffffffffffffffff0\r\n\r\n", b"0\r\n\0\r\n\r\n")
    )  # fmt: skip
    return _message(draws, [b"transfer-encoding: chunked"], body)


def _message(draws: random.Random, lines: list[bytes], body: bytes) -> bytes:
    start = draws.choice(
        (b"POST /v1/score HTTP/1.1", b"GET /livez HTTP/1.1", b"POST /v1/score HTTP/1.0")
    )
    lines = [*lines, b"host: localhost", b"content-type: text/plain", b"connection: keep-alive"]
    draws.shuffle(lines)
    return b"\r\n".join([start, *lines, b"", b""]) + body + _HIDDEN


async def _headers(target: Target, draws: random.Random, count: int) -> None:
    """Send heads of any methods, targets, versions, lines and headers, whole or byte by byte."""
    await together(_probe(target, _head(draws)) for _ in range(count))


def _head(draws: random.Random) -> bytes:
    line = draws.choice(_LINES) if draws.random() < 0.2 else b"\r\n"
    start = b" ".join(
        (
            draws.choice(_METHODS[:4]) if draws.random() < 0.7 else draws.choice(_METHODS),
            draws.choice(_PATHS),
            draws.choice(_VERSIONS),
        )
    )
    many = draws.choice((0, 1, 3, 10, 150, 199, 300, 4_000))
    headers = [b"host: localhost", *(_header(draws) for _ in range(min(many, 10)))]
    headers += [b"x-%d: %s" % (n, b"v" * draws.choice((0, 1, 60))) for n in range(many - 10)]
    if draws.random() < 0.1:
        headers.append(b"x-long: " + b"y" * draws.choice((1_000, 60_000, 200_000)))
    draws.shuffle(headers)
    body = draws.choice((b"", b"", b"0\r\n\r\n", draws.randbytes(40)))
    before = draws.choice(
        (b"", b"", b"", b"\r\n\r\n", b"\r\n" * 500, b"\n", b" ", b"\0", b"\xef\xbb\xbf")
    )
    if draws.random() < 0.05:
        return draws.choice(
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(40),
            b"\x16\x03\x01\x02\0\1\0\1\xfc\x03\x03", b"\0" * 900,
             draws.randbytes(300), b"GET", b"\r\n" * 9, b"GET /livez\r\n")
        )  # fmt: skip
    return before + line.join([start, *headers, b"", b""]) + body


def _header(draws: random.Random) -> bytes:
    name = draws.choice(_NAMES)
    separator = draws.choice((b": ", b": ", b": ", b":", b" : ", b":\t"))
    value = draws.choice(_VALUES) if draws.random() < 0.9 else draws.randbytes(20)
    return name.title() + separator + value


async def _pipelines(target: Target, draws: random.Random, count: int) -> None:
    """Send many requests at once on a connection; they are answered in their order."""
    await together(map(partial(_pipeline, target, draws), range(count)))


async def _pipeline(target: Target, draws: random.Random, _: int) -> None:
    sent = draws.choice((2, 5, 30, 200))
    wanted = [draws.choice((b"/livez", b"/v1/info", b"/v1/none")) for _ in range(sent)]
    ids = [b"%d-%d" % (draws.getrandbits(40), n) for n in range(sent)]
    whole = b"".join(
        b"GET %s HTTP/1.1\r\nhost: localhost\r\nx-request-id: %s\r\n%s\r\n"
        % (path, one, b"connection: close\r\n" if n == sent - 1 else b"")
        for n, (path, one) in enumerate(zip(wanted, ids, strict=True))
    )
    answer = await target.send(whole, "a pipeline", until_silence=True)
    places = [answer.find(b"x-request-id: " + one) for one in ids]
    if answer and (-1 in places or places != sorted(places)):
        target.fault("wrong", f"{sent} pipelined requests were not answered in their order")


KINDS = {
    "smuggling": Kind("requests hidden in requests", _ambiguous),
    "heads": Kind("heads of any method, target, version and headers", _headers),
    "pipelines": Kind("up to 200 requests at once on a connection", _pipelines),
}
