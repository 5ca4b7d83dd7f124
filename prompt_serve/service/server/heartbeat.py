"""Find workers that hang: each shows every second that its event loop and its encoder run.

A worker touches a file of its own; the supervisor kills a worker whose file is not touched any
more, and starts another one as for any worker that died. Stopped, swapped out, deadlocked or stuck
in a driver: the kind of hang does not matter. A worker that does not finish its start has no file;
it is killed after ``START_TIMEOUT_S``.
"""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import psutil
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = "_PROMPT_SERVE_HEARTBEATS"  # variable with the folder of the files
BEAT_S = 1.0
START_TIMEOUT_S = 600.0  # of a worker: the largest backbones take a minute
_STARTS_EVERY_S = 30.0  # looking at all processes of the machine is not for every second
_WORKER = "_bentoml_impl.worker"  # in the command line of a worker


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


def watch_workers(parent: Path, timeout_s: float, start_timeout_s: float = START_TIMEOUT_S) -> None:
    """Kill workers that have not beaten for ``timeout_s``, or not at all for ``start_timeout_s``.

    Called in the supervisor, before they start; their files are below ``parent``.
    """
    folder = parent / "heartbeats"
    folder.mkdir()
    os.environ[FOLDER] = str(folder)
    arguments = folder, timeout_s, start_timeout_s
    threading.Thread(target=_watch, args=arguments, daemon=True).start()


def _watch(folder: Path, timeout_s: float, start_timeout_s: float) -> None:
    starting: dict[psutil.Process, float] = {}  # when it was first seen
    look_at = 0.0
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
        if now >= look_at:
            look_at = now + min(_STARTS_EVERY_S, start_timeout_s)
            silent = [one for one in _workers() if not (folder / str(one.pid)).exists()]
            starting = {one: starting.get(one, now) for one in silent}
            for worker, since in starting.items():
                if now - since >= start_timeout_s:
                    _kill(worker.pid, now - since)
        time.sleep(BEAT_S)


def _workers() -> Iterator[psutil.Process]:
    """Yield the workers of this supervisor."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended
            if _WORKER in " ".join(process.cmdline()):
                yield process


def _kill(pid: int, timeout_s: float) -> None:
    try:
        is_ours = psutil.Process(pid).ppid() == os.getpid()  # the number may be another's by now
    except psutil.NoSuchProcess:
        return
    if is_ours:
        click.echo(f"prompt-serve replaces worker {pid}: silent for {timeout_s:g} s.", err=True)
        os.kill(pid, signal.SIGKILL)
