"""Find workers that hang: each shows every second that its event loop and its encoder run.

A worker touches a file of its own; the supervisor kills a worker whose file is not touched any
more, and starts another one as for any worker that died. Stopped, swapped out, deadlocked or stuck
in a driver: the kind of hang does not matter.
"""

import asyncio
import atexit
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import psutil
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = "_PROMPT_SERVE_HEARTBEATS"  # variable with the folder of the files
BEAT_S = 1.0


class HeartbeatMiddleware:
    """ASGI middleware that beats from the start of the worker to its end.

    Args:
        app: everything.
        is_alive: False if only a restart of the worker helps.
    """

    def __init__(self, app: ASGIApp, is_alive: Callable[[], bool]) -> None:
        self._app = app
        self._is_alive = is_alive
        self._beating: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_and_beat(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete" and FOLDER in os.environ:
                self._beating = asyncio.create_task(self._beat())
            await send(message)

        await self._app(scope, receive, send_and_beat)

    async def _beat(self) -> None:
        file = Path(os.environ[FOLDER]) / str(os.getpid())
        while True:
            if self._is_alive():
                file.touch()
            await asyncio.sleep(BEAT_S)


def watch_workers(timeout_s: float) -> None:
    """Kill workers that have not beaten for ``timeout_s``. In the supervisor, before they start."""
    folder = tempfile.mkdtemp(prefix="prompt-serve-heartbeats-")
    os.environ[FOLDER] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    watching = threading.Thread(target=_watch, args=(Path(folder), timeout_s), daemon=True)
    watching.start()


def _watch(folder: Path, timeout_s: float) -> None:
    seen: dict[Path, tuple[int, float]] = {}  # time of the last beat, and when it was first seen
    while folder.exists():
        now = time.monotonic()
        for file in folder.iterdir():
            beat = file.stat().st_mtime_ns
            if seen.get(file, (0, now))[0] != beat:
                seen[file] = (beat, now)
            elif now - seen[file][1] > timeout_s:
                _kill(int(file.name), timeout_s)
                file.unlink(missing_ok=True)
                del seen[file]
        time.sleep(BEAT_S)


def _kill(pid: int, timeout_s: float) -> None:
    try:
        is_ours = psutil.Process(pid).ppid() == os.getpid()  # the number may be another's by now
    except psutil.NoSuchProcess:
        return
    if is_ours:
        click.echo(f"prompt-serve replaces worker {pid}: silent for {timeout_s:g} s.", err=True)
        os.kill(pid, signal.SIGKILL)
