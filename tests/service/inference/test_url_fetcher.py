"""Fetching from URLs, against a real HTTP server on this machine that attempts forgery (SSRF)."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from prompt_serve.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    ImageUnreachable,
    PromptServeError,
    RequestTooLarge,
    UrlRefused,
)
from prompt_serve.service.inference.url_fetcher import (
    Resolve,
    SystemResolver,
    UrlFetcher,
    UrlImageLoader,
    UrlPolicy,
    parse_hosts,
)
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.service.scheduling.deadline import Deadline
from prompt_serve.service.settings import Settings

IMAGE = b"the bytes of an image"


class Server:
    """Web server on the loopback interface that records its requests."""

    def __init__(self, image: bytes = IMAGE) -> None:
        server = self
        self._image = image
        self.requests: list[tuple[str, str]] = []  # path and Host

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers["Host"]))
                server.answer(self)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        path, _, argument = to.path.partition("?")
        if path == "/redirect":
            to.send_response(302)
            to.send_header("Location", argument)
            to.send_header("Content-Length", "0")
            to.end_headers()
        elif path == "/endless":
            to.send_response(200)
            to.end_headers()
            for _ in range(1000):
                to.wfile.write(b"x" * 65_536)
        elif path == "/slow":
            to.send_response(200)
            to.send_header("Content-Length", "100")
            to.end_headers()
            for _ in range(100):
                to.wfile.write(b"x")
                to.wfile.flush()
                time.sleep(0.1)
        elif path == "/gzip":
            self._send(to, 200, IMAGE, ("Content-Encoding", "gzip"))
        elif path == "/image":
            self._send(to, 200, self._image)
        else:
            self._send(to, 404, b"nothing here")

    def _send(
        self, to: BaseHTTPRequestHandler, status: int, body: bytes, *more: tuple[str, str]
    ) -> None:
        to.send_response(status)
        for name, value in (("Content-Length", str(len(body))), *more):
            to.send_header(name, value)
        to.end_headers()
        to.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


LOOPBACK = frozenset({"127.0.0.1", "images.test", "other.test"})


def names(**addresses: Sequence[str]) -> tuple[Resolve, list[str]]:
    """Return a resolver with fixed addresses: each of a name's addresses once, then the last."""
    resolved: list[str] = []
    system = SystemResolver()

    async def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        known = addresses.get(host.replace(".", "_"))
        if known is None:
            return await system(host, port)
        return [known[min(resolved.count(host), len(known)) - 1]]

    return resolve, resolved


def fetch(url: str, policy: UrlPolicy | None = None, resolve: Resolve | None = None) -> bytes:
    async def run() -> bytes:
        fetcher = UrlFetcher(policy or UrlPolicy(private_hosts=LOOPBACK), resolve=resolve)
        try:
            return await fetcher.fetch(url)
        finally:
            await fetcher.close()

    return asyncio.run(run())


def test_an_image_is_fetched_and_a_redirect_followed(server: Server) -> None:
    assert fetch(server.url("/image")) == IMAGE
    assert fetch(server.url("/redirect?/image")) == IMAGE
    assert fetch(server.url("/redirect?" + server.url("/redirect?/image"))) == IMAGE


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "0",
     "[::ffff:127.0.0.1]", "127.0.0.1.", "169.254.169.254", "10.0.0.1", "[fe80::1]"],
)  # fmt: skip
def test_this_machine_is_refused_however_it_is_written(server: Server, host: str) -> None:
    before = len(server.requests)

    with pytest.raises((UrlRefused, ImageUnreachable)) as caught:
        fetch(server.url("/image", host), UrlPolicy())

    assert len(server.requests) == before
    # Refused, unless no resolver knows what it stands for.
    assert isinstance(caught.value, UrlRefused) or "gave no answer" in str(caught.value)


def test_a_host_with_one_private_address_among_public_ones_is_refused(server: Server) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.215.14", "127.0.0.1"]

    with pytest.raises(UrlRefused, match="does not have a public address"):
        fetch(server.url("/image", "mixed.test"), UrlPolicy(), resolve)


def test_the_address_that_was_checked_is_the_one_connected_to(server: Server) -> None:
    resolve, resolved = names(images_test=["127.0.0.1", "203.0.113.9"])

    assert fetch(server.url("/image", "images.test"), resolve=resolve) == IMAGE
    assert resolved == ["images.test"]  # once: there is no second answer to trust
    assert server.requests[-1] == ("/image", f"images.test:{server.port}")


def test_a_name_that_turns_private_between_redirects_is_caught(server: Server) -> None:
    # Public at first as far as the policy goes, then this machine: the redirect is checked anew.
    resolve, resolved = names(images_test=["127.0.0.1"], rebound_test=["127.0.0.1"])
    policy = UrlPolicy(private_hosts=frozenset({"images.test"}))
    before = len(server.requests)

    with pytest.raises(UrlRefused, match=r"'rebound\.test' does not have a public address"):
        fetch(
            server.url("/redirect?" + server.url("/image", "rebound.test"), "images.test"),
            policy,
            resolve,
        )

    assert resolved == ["images.test", "rebound.test"]
    assert len(server.requests) == before + 1


def test_redirects_are_checked_and_bounded(server: Server) -> None:
    only_name = UrlPolicy(private_hosts=frozenset({"images.test"}))
    resolve, _ = names(images_test=["127.0.0.1"])
    start = server.url("/redirect?", "images.test")

    for target in (server.url("/image"), "http://169.254.169.254/latest/meta-data/"):
        with pytest.raises(UrlRefused, match="public address"):
            fetch(start + target, only_name, resolve)
    for target in ("file:///etc/passwd", "gopher://x/", "ftp://x/"):
        with pytest.raises(UrlRefused):
            fetch(start + target, only_name, resolve)
    four = server.url("/redirect?/redirect?/redirect?/redirect?/image")
    with pytest.raises(ImageUnreachable, match="more than 3 redirects"):
        fetch(four)


@pytest.mark.parametrize(
    "url",
    ["", "images.test/a.png", "ftp://images.test/a", "file:///etc/passwd", "http://",
     "http://user:secret@images.test/", "unix:///run/docker.sock", "http://[::1", "data:,x",
     "http://images.test:99999999/", "javascript:alert(1)", "//images.test/a"],
)  # fmt: skip
def test_anything_but_a_plain_url_is_refused_before_resolving(url: str) -> None:
    resolve, resolved = names()

    with pytest.raises(UrlRefused):
        fetch(url, UrlPolicy(), resolve)

    assert resolved == []


def test_only_the_parse_hosts_the_allow_list_are_fetched_from(server: Server) -> None:
    resolve, _ = names(images_test=["127.0.0.1"], cdn_images_test=["127.0.0.1"])
    everywhere = frozenset({"images.test", "cdn.images.test", "evilimages.test"})
    policy = UrlPolicy(hosts=parse_hosts("*.images.test, Other.test"), private_hosts=everywhere)

    assert fetch(server.url("/image", "CDN.images.test"), policy, resolve) == IMAGE
    for host in ("images.test", "evilimages.test", "127.0.0.1"):
        with pytest.raises(UrlRefused, match="does not fetch"):
            fetch(server.url("/image", host), policy, resolve)


def test_size_and_time_are_limited_while_it_streams(server: Server) -> None:
    small = UrlPolicy(private_hosts=LOOPBACK, max_bytes=200_000)
    hasty = UrlPolicy(private_hosts=LOOPBACK, timeout_s=0.5)

    with pytest.raises(ImageTooLarge, match="200,000"):
        fetch(server.url("/endless"), small)
    started = time.monotonic()
    with pytest.raises(ImageUnreachable, match=r"more than 0\.5 s"):
        fetch(server.url("/slow"), hasty)
    assert time.monotonic() - started < 8  # it would take ten to the end


def test_answers_without_an_image_are_told_apart(server: Server) -> None:
    with pytest.raises(ImageUnreachable, match="status 404"):
        fetch(server.url("/nothing?signature=secret"))
    with pytest.raises(ImageUnreachable, match="compressed"):
        fetch(server.url("/gzip"))
    with pytest.raises(ImageUnreachable, match="no answer"):
        fetch("http://127.0.0.1:1/image")


def test_errors_do_not_repeat_a_query_which_may_hold_a_signature(server: Server) -> None:
    with pytest.raises(ImageUnreachable) as caught:
        fetch(server.url("/nothing?signature=secret"))

    assert "secret" not in str(caught.value)


def test_urls_are_off_unless_switched_on(server: Server) -> None:
    (outcome,) = fetch_all(Settings(), [server.url("/image")])

    assert isinstance(outcome, UrlRefused)
    assert "PROMPT_SERVE_IMAGE_URLS" in outcome.message


def test_each_url_of_a_request_has_its_own_outcome_within_its_time_and_bytes(
    server: Server,
) -> None:
    settings = Settings(
        image_urls=True, image_url_private_hosts="127.0.0.1", max_body_bytes=2 * len(IMAGE)
    )
    good, bad, slow = (server.url(path) for path in ("/image", "/nothing", "/slow"))

    outcomes = fetch_all(settings, [good, bad, slow, good], timeout_s=1.5)
    over_budget = fetch_all(settings, [good, good, good])

    assert outcomes[0] == outcomes[3] == IMAGE
    assert isinstance(outcomes[1], ImageUnreachable)
    assert isinstance(outcomes[2], DeadlineExceeded)
    assert sum(isinstance(outcome, RequestTooLarge) for outcome in over_budget) == 1


def fetch_all(
    settings: Settings, urls: list[str], timeout_s: float = 20
) -> list[bytes | PromptServeError]:
    async def run() -> list[bytes | PromptServeError]:
        return await UrlImageLoader(settings).fetch_all(urls, Deadline.after(timeout_s))

    return asyncio.run(run())


@pytest.mark.parametrize("slow_names", [8, 64])
def test_slow_names_of_one_client_do_not_delay_those_of_another(slow_names: int) -> None:
    answer = threading.Event()

    def lookup(host: str, port: int, **_: object) -> list[Any]:
        if host == "slow":
            assert answer.wait(20)
        return [(0, 0, 0, "", ("198.51.100.7", port))]

    async def run() -> list[str]:
        resolve = SystemResolver(lookup)
        with request_scope(RequestContext(client="slow")):
            slow = [asyncio.create_task(resolve("slow", 80)) for _ in range(slow_names)]
        await asyncio.sleep(0)
        with request_scope(RequestContext(client="other")):
            found = await asyncio.wait_for(resolve("quick", 80), timeout=20)
        # Threads of asyncio's own are free as well: bodies are parsed there.
        assert await asyncio.wait_for(asyncio.to_thread(int, "3"), timeout=20) == 3
        assert not any(task.done() for task in slow)
        answer.set()
        await asyncio.gather(*slow)
        return found

    assert asyncio.run(run()) == ["198.51.100.7"]


@pytest.mark.parametrize("requests", [3, 4, 5, 8])
def test_servers_that_never_answer_one_client_delay_no_other(server: Server, requests: int) -> None:
    """Whoever sends their URLs holds most of the connections, but not all of them."""
    settings = Settings(
        image_urls=True, image_url_private_hosts="127.0.0.1", image_url_timeout_s=120
    )

    async def run() -> None:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        loader, deadline = UrlImageLoader(settings), Deadline.after(120)
        with request_scope(RequestContext(client="greedy")):
            held = [
                asyncio.create_task(loader.fetch_all([url] * 16, deadline)) for _ in range(requests)
            ]
        await asyncio.sleep(0)
        with request_scope(RequestContext(client="other")):
            for _ in range(5):
                async with asyncio.timeout(60):
                    assert (
                        await loader.fetch_all([server.url("/image")] * 3, deadline) == [IMAGE] * 3
                    )
        assert not any(task.done() for task in held)
        for task in held:
            task.cancel()
        await asyncio.wait(held)

    with socket.create_server(("127.0.0.1", 0), backlog=256) as silent:
        asyncio.run(run())
