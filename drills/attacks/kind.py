"""Kind of attack, and the service that it is done to: sends requests and counts what comes back."""

import asyncio
import contextlib
import io
import random
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TypeVar

import h11
import httpx

from drills.load import TIMEOUT_S
from drills.stand import Stand
from prompt_serve.service.storage.api_keys import Keys
from prompt_serve.service.storage.database import Database

# What the service may answer from 500 on: 501 and 505 name what it does not speak, 503 and 504 say
# that it cannot now.
REFUSALS_5XX = frozenset({501, 503, 504, 505})
CLOSED = 499  # nginx's status: the connection is closed without an answer, and none was due
SILENCE_S = 2.0
_SHOWN_FAULTS = 50
_CHUNK_BYTES = 2**16

_T = TypeVar("_T")


@dataclass(frozen=True)
class Kind:
    """Kind of attack: what is sent, and what the service needs for it.

    Args:
        what: title of the row.
        attack: sends so many instances, drawn from the numbers.
        settings: of the service, without the prefix and in lower case.
        postgres: on PostgreSQL; otherwise on SQLite.
        keyed: the service has keys: that of the bystander, and ``Target.admin_key``.
    """

    what: str
    attack: "Callable[[Target, random.Random, int], Awaitable[None]]"
    settings: Mapping[str, str] = field(default_factory=dict)
    postgres: bool = False
    keyed: bool = False


class NotMade(Exception):
    """An instance that no library can write."""


class Target:
    """Service under attack, and what was found.

    Args:
        stand: the service.
        admin_key: of the attacker; empty if the service has no keys.
    """

    def __init__(self, stand: Stand, admin_key: str = "") -> None:
        self.stand = stand
        self.admin_key = admin_key
        self.statuses: Counter[int] = Counter()
        self.found: Counter[str] = Counter()  # faults by kind
        self.faults: list[str] = []  # the first of them
        self._http: httpx.AsyncClient
        self._maker: ProcessPoolExecutor

    @property
    def instances(self) -> int:
        """Number of answers, and of requests that had none."""
        return self.statuses.total() + self.found["hung"] + self.found["lost"]

    def fault(self, kind: str, what: str) -> None:
        """Count something that must not happen.

        Args:
            kind: leaked, wrong, lost, hung or 5xx.
            what: says how to repeat it.
        """
        self.found[kind] += 1
        if len(self.faults) < _SHOWN_FAULTS:
            self.faults.append(f"{kind}: {what}")

    def count(self, status: int, name: str, shown: object = "") -> None:
        """Count an answer by its status; an error of the service is a fault."""
        self.statuses[status] += 1
        if status >= 500 and status not in REFUSALS_5XX:
            self.fault("5xx", f"{status} to {name}: {str(shown)[:300]}")

    async def send(self, request: bytes, name: str, *, until_silence: bool = False) -> bytes:
        """Send bytes over a new connection, and return all that was received.

        Args:
            request: one or several requests, or anything else.
            name: of the instance, for its faults.
            until_silence: read on until the connection is closed or silent, instead of up to the
                end of the first answer; then nothing but its status is judged.
        """
        shown = f"{name}: {request[:200]!r}"
        answer = _Answer(request)
        try:
            async with asyncio.timeout(TIMEOUT_S), self.connection() as (reader, writer):
                sending = asyncio.create_task(_write(writer, request))
                try:
                    await (answer.read_all(reader) if until_silence else answer.read(reader))
                finally:
                    sending.cancel()
                    await asyncio.wait([sending])
        except TimeoutError:
            self.fault("hung", f"{shown} has no answer in {TIMEOUT_S:g} s")
        except (OSError, h11.RemoteProtocolError) as error:
            self.fault("lost", f"{shown}: {type(error).__name__} {error}")
        else:
            if answer.status is not None:
                self.count(answer.status, name, answer.received)
            elif not until_silence:
                self.fault("lost", f"{shown} was closed without an answer")
        return answer.received

    async def ask(
        self,
        method: str,
        path: str,
        *,
        name: str,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request through httpx; what comes in place of an answer has status 599.

        Args:
            method: of the request.
            path: with the query, escaped.
            name: of the instance, for its faults.
            content: of the body.
            headers: of the request.
        """
        url = self._http.base_url.copy_with(raw_path=path.encode())
        sent = [(k.encode(), v.encode("latin-1")) for k, v in (headers or {}).items()]
        try:
            answer = await self._http.request(method, url, content=content, headers=sent)
        except httpx.TimeoutException as error:
            self.fault("hung", f"{name}: {type(error).__name__}, {method} {path[:200]}")
        except (httpx.TransportError, OSError) as error:
            self.fault("lost", f"{name}: {type(error).__name__} {error}, {method} {path[:200]}")
        else:
            self.count(answer.status_code, f"{name}, {method} {path[:200]}", answer.text[:300])
            return answer
        return httpx.Response(599, request=httpx.Request(method, self.stand.url))

    async def make(self, function: Callable[..., _T], *args: object) -> _T:
        """Make something costly in a process of its own: the bystander's clock runs in this one.

        Args:
            function: of a module, as all that it takes.

        Raises:
            NotMade: the process crashed, twice: an encoder of some library cannot write it.
        """
        for _ in range(2):
            maker = self._maker
            try:
                return await asyncio.get_running_loop().run_in_executor(maker, function, *args)
            except BrokenProcessPool:
                if self._maker is maker:  # others that wait for it find a new one
                    self._maker = _new_maker()
        raise NotMade

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a connection, which is cut at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.stand.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Target"]:
        """Make ``ask`` and ``make`` possible."""
        limits = httpx.Limits(max_connections=256)
        url = self.stand.url
        self._maker = _new_maker()
        try:
            async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as http:
                self._http = http
                yield self
        finally:
            self._maker.shutdown()

    @contextlib.contextmanager
    def keys(self) -> Iterator[Keys]:
        """Open the keys of the service, as the command line does."""
        with open_keys(self.stand) as keys:
            yield keys


def _new_maker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"))


@contextlib.contextmanager
def open_keys(stand: Stand) -> Iterator[Keys]:
    url = stand.settings.get("database_url", f"sqlite:///{stand.home / 'registry.db'}")
    database = Database(url)
    try:
        yield Keys(database)
    finally:
        database.close()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of files by path, the same for the same files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return file.getvalue()


async def together(works: Iterable[Awaitable[object]], at_once: int = 8) -> None:
    """Await all of them, so many at a time; they are made when their turn has come."""
    waiting = iter(works)

    async def work() -> None:
        for one in waiting:
            await one

    await asyncio.gather(*(work() for _ in range(at_once)))


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write as fast as the service reads; it may answer, and close, before that."""
    with contextlib.suppress(OSError):
        for start in range(0, len(data), _CHUNK_BYTES):
            writer.write(data[start : start + _CHUNK_BYTES])
            await writer.drain()


class _Answer:
    """Answer to a request that was sent as bytes."""

    def __init__(self, request: bytes) -> None:
        self.received = b""
        self.status: int | None = None  # of the first answer
        self._parser = h11.Connection(h11.CLIENT)
        method = "HEAD" if request.startswith(b"HEAD ") else "GET"
        self._parser.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        self._parser.send(h11.EndOfMessage())

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Read up to the end of the answer, or of a connection on which none was begun."""
        while True:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except ConnectionError:
                data = b""
            self.received += data
            if not data and self.status is None:
                return
            self._parser.receive_data(data)
            while (event := self._parser.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    self.status = event.status_code
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    return

    async def read_all(self, reader: asyncio.StreamReader) -> None:
        """Read until the connection is closed or silent."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while data := await asyncio.wait_for(reader.read(_CHUNK_BYTES), SILENCE_S):
                self.received += data
        if self.received[9:12].isdigit():
            self.status = int(self.received[9:12])
