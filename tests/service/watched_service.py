"""The service in this process, with a watchdog on its event loop, and callers that cost nothing.

Callers send bytes that were made before, over plain sockets, so that what holds the loop or the
interpreter is the service.
"""

import asyncio
import contextlib
import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from starlette.types import ASGIApp

from prompt_serve.service.core import Core
from prompt_serve.service.http.app import create_app
from prompt_serve.service.middleware.body_limit import BodyLimitMiddleware
from prompt_serve.service.server import http_protocol
from prompt_serve.service.settings import Settings
from tests.service.process import free_port

_INTERVAL_S = 0.005
_START_S = 120.0
_ANSWER_S = 120.0


@dataclass
class Watched:
    """A running service, and the longest time that its loop was held since ``reset``."""

    port: int
    core: Core
    longest_s: float = 0.0
    _stopped: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        self.longest_s = 0.0

    def ask(self, request: bytes) -> bytes:
        """Send a request and return its answer, whole or as far as it came."""
        answer = bytearray()
        with socket.create_connection(("127.0.0.1", self.port), timeout=_ANSWER_S) as connection:
            with contextlib.suppress(OSError):  # answered and closed before all was sent
                connection.sendall(request)
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(2**20):
                    answer += part
        return bytes(answer)

    async def watch(self) -> None:
        while not self._stopped.is_set():
            started = time.perf_counter()
            await asyncio.sleep(_INTERVAL_S)
            self.longest_s = max(self.longest_s, time.perf_counter() - started - _INTERVAL_S)


@contextlib.contextmanager
def watched_service(
    home: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, **settings: str
) -> Iterator[Watched]:
    """Run the app with the middleware that reads bodies, without BentoML, in a thread."""
    given = {"HOME": str(home), "BUNDLE": str(bundle), **settings}
    for name, value in given.items():
        monkeypatch.setenv(f"PROMPT_SERVE_{name.upper()}", value)
    http_protocol.install()  # as the service does
    configured = Settings.from_environment()
    core = Core(configured)
    gc.collect()
    gc.freeze()  # as the service does when it has started
    app: ASGIApp = create_app(core)

    async def under_v1(scope, receive, send):  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            scope = {**scope, "root_path": "/v1"}
        await app(scope, receive, send)

    limited = BodyLimitMiddleware(
        under_v1,
        configured.max_body_bytes,
        lambda: core.budget,
        configured.min_body_bytes_per_s,
    )
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(limited, port=port, log_level="warning", lifespan="off", access_log=False)
    )
    watched = Watched(port, core)

    async def serve() -> None:
        watching = asyncio.create_task(watched.watch())
        await server.serve()
        watched._stopped.set()
        await watching

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    give_up = time.monotonic() + _START_S
    while not server.started and time.monotonic() < give_up:
        time.sleep(0.01)
    try:
        yield watched
    finally:
        server.should_exit = True
        thread.join(_START_S)
        core.close()
        gc.unfreeze()


def request(method: str, path: str, body: bytes, kind: str, **headers: str) -> bytes:
    """Return a request as bytes; the connection is closed after its answer."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def add_task(watched: Watched) -> None:
    """Add the tasks that the costly requests name."""
    for name, classes in {
        "pets": ["cat", "dog"],
        "many": [f"thing {n}" for n in range(60)],
    }.items():
        body = json.dumps({"name": name, "class_names": classes}).encode()
        answer = watched.ask(request("POST", "/v1/tasks", body, "application/json"))
        assert answer[9:12] == b"201", answer
    watched.reset()
