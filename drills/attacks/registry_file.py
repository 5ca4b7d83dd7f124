"""Harm to the file of a registry while tasks are uploaded, read and classified with.

What was acknowledged must be there, or the service must say that it cannot tell: an answer that is
wrong, older, or missing without an error of the registry is a fault. Each round begins with a
backup made under load, and ends with its restoration where the harm cannot be undone.
"""

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from drills.answers import Oracle
from drills.attacks.apart import add_ledger, apart, first_change, small_oracle
from drills.attacks.kind import Kind, Target
from drills.load import Load
from prompt_serve.errors import PromptServeError
from prompt_serve.service.storage.upkeep.backup import back_up, restore
from prompt_serve.service.storage.upkeep.check import check_registry

_PER_ROUND = 60  # answers, about
_PAGE_BYTES = 4096
_READ_AGAIN = {"feature_cache_bytes": "20000"}  # two tasks: the others are read for each request
_DISK = "48m"
_SAYS_SO = (503, 504)


@dataclass(frozen=True)
class Harm:
    """Harm to the main file of a registry.

    Args:
        do: does it; what follows after its ``yield`` undoes it.
        heals: the service must work again then.
        hides: may hide rows without a trace: SQLite has no checksums of its pages. Only answers
            that are wrong are faults.
    """

    do: Callable[[Path, random.Random], contextlib.AbstractContextManager[None]]
    heals: bool = False
    hides: bool = False


async def attack(target: Target, draw: random.Random, count: int) -> None:
    """Harm the file in rounds."""
    settings = {**_READ_AGAIN, "stale_tasks_s": draw.choice(("0", "300"))}
    oracle = await asyncio.to_thread(small_oracle)
    async with apart(target, settings, disk=_DISK) as own:
        for _ in range(max(1, count // _PER_ROUND)):
            await _round(own, draw, oracle)


async def _round(own: Target, draw: random.Random, oracle: Oracle) -> None:
    name, harm = draw.choice(list(HARMS.items()))
    url = own.stand.settings["database_url"]
    path = Path(url.removeprefix("sqlite:///"))
    backup = own.stand.home / "backup.db"
    seed = draw.randrange(2**32)
    async with Load(
        own.stand.url, oracle, clients=2, bad_images=0, leaves=0, writes_per_s=6, seed=seed
    ) as load:
        await asyncio.sleep(draw.uniform(0.2, 1.0))
        await _back_up(own, load, url, backup)
        done = harm.do(path, draw)
        await asyncio.to_thread(done.__enter__)
        await asyncio.sleep(draw.uniform(0.5, 2.5))
        await asyncio.to_thread(done.__exit__, None, None, None)
        if harm.heals:
            await first_change(own, load, time.monotonic())
        else:
            await asyncio.sleep(draw.uniform(0.2, 1.0))
    await _check(own, load, name, harm)
    load.ledger.faults[:] = [f"{fault} ({name})" for fault in load.ledger.faults]
    add_ledger(own, load.ledger, ignored=("status 4",) if harm.hides else ())
    if not harm.heals:
        processes = own.stand.processes()
        await asyncio.to_thread(own.stand.kill)
        await asyncio.to_thread(psutil.wait_procs, processes, timeout=30)  # they hold locks
        await asyncio.to_thread(restore, backup, url)
        for aside in path.parent.glob("*.replaced-*"):
            aside.unlink()
        own.stand.start()
        await own.stand.ready()


async def _back_up(own: Target, load: Load, url: str, backup: Path) -> None:
    """Back up and check the registry while it is changed; compare the copy with the answers."""
    started = time.monotonic()
    try:
        await asyncio.to_thread(back_up, url, backup)
        checked = await asyncio.to_thread(check_registry, url)
    except PromptServeError as error:
        own.fault("lost", f"backup under load: {error.message}")
        return
    ended = time.monotonic()
    for fault in checked.faults:
        own.fault("wrong", f"check under load: {fault}")
    with contextlib.closing(sqlite3.connect(backup)) as database:
        stored = dict(database.execute("SELECT name, version FROM task"))
    for name, history in load.histories.items():
        if stored.get(name) not in history.allowed(started, ended):
            own.fault("lost", f"{name} is at {stored.get(name)} in a backup under load")


async def _check(own: Target, load: Load, name: str, harm: Harm) -> None:
    """Read all tasks: each is as it was acknowledged, or the service cannot read it."""
    for task, history in load.histories.items():
        answer = await own.ask("GET", f"/v1/tasks/{task}", name=name)
        file = await own.ask("GET", f"/v1/tasks/{task}/file", name=name)
        if _is_missing(answer, file) and not harm.hides:
            own.fault("lost", f"{name}: {task} is {answer.status_code}, {file.status_code}")
        if answer.status_code == 200 and answer.json()["version"] not in history.final:
            own.fault("lost", f"{name}: {task} is at {answer.json()['version']}")
        if file.status_code == 200:
            version = file.headers["etag"].strip('"')
            expected = load.oracle.by_version.get(version)
            if expected is None or file.content != expected.data:
                own.fault("wrong", f"{name}: the file of {task} is not what was uploaded")


def _is_missing(*answers: httpx.Response) -> bool:
    return any(answer.status_code not in (200, *_SAYS_SO) for answer in answers)


# Harm. A copy or backup is as old as the beginning of the round.


@contextlib.contextmanager
def _moved(path: Path, _: random.Random) -> Iterator[None]:
    elsewhere = path.with_name("elsewhere.db")
    path.rename(elsewhere)
    yield
    elsewhere.rename(path)


@contextlib.contextmanager
def _deleted(path: Path, draw: random.Random) -> Iterator[None]:
    names = [path.name, f"{path.name}-wal", f"{path.name}-shm"]
    for name in draw.sample(names, draw.randint(1, 3)):
        path.with_name(name).unlink(missing_ok=True)
    yield


@contextlib.contextmanager
def _replaced(path: Path, draw: random.Random) -> Iterator[None]:
    copy = path.with_name("copy.db")
    _copy(path, copy)
    copy.replace(path)
    yield


@contextlib.contextmanager
def _laid_over(path: Path, draw: random.Random) -> Iterator[None]:
    """Copy an older state over the file, which keeps its inode, once newer changes are in it."""
    older = path.with_name("older.db")
    _copy(path, older)
    time.sleep(draw.uniform(0.5, 1.5))
    _checkpoint(path)
    time.sleep(0.3)  # the service uses the file meanwhile
    shutil.copyfile(older, path)
    older.unlink()
    yield


@contextlib.contextmanager
def _overwritten(path: Path, draw: random.Random) -> Iterator[None]:
    size = draw.choice((10, 100, _PAGE_BYTES, path.stat().st_size))
    with path.open("r+b") as file:
        file.write(draw.choice((bytes(size), b"x" * size, draw.randbytes(size))))
    yield


@contextlib.contextmanager
def _cut_off(path: Path, draw: random.Random) -> Iterator[None]:
    _checkpoint(path)
    os.truncate(path, draw.randrange(path.stat().st_size))
    yield


@contextlib.contextmanager
def _flipped(path: Path, draw: random.Random) -> Iterator[None]:
    """Change bits anywhere behind the first page, which has the header."""
    _checkpoint(path)
    _flip(path, draw, _PAGE_BYTES, draw.choice((1, 5, 50, 500)))
    yield


@contextlib.contextmanager
def _flipped_log(path: Path, draw: random.Random) -> Iterator[None]:
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        _flip(log, draw, 0, draw.choice((1, 5, 50)))
    yield


@contextlib.contextmanager
def _locked(path: Path, draw: random.Random) -> Iterator[None]:
    """Hold the lock of a writer, some times for longer than the service waits for it."""
    database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    database.execute("BEGIN IMMEDIATE")
    time.sleep(draw.choice((0.0, 0.0, 6.0)))
    yield
    database.execute("ROLLBACK")
    database.close()


@contextlib.contextmanager
def _full(path: Path, _: random.Random) -> Iterator[None]:
    filler = path.with_name("filler")
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (2**20, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    yield
    filler.unlink()


HARMS: Mapping[str, Harm] = {
    "moved away and back": Harm(_moved, heals=True),
    "locked by another program": Harm(_locked, heals=True),
    "disk full": Harm(_full, heals=True),
    "deleted": Harm(_deleted),
    "replaced by a copy": Harm(_replaced),
    "older copy laid over": Harm(_laid_over),
    "overwritten": Harm(_overwritten, hides=True),
    "cut off": Harm(_cut_off),
    "bits flipped": Harm(_flipped, hides=True),
    "bits of the log flipped": Harm(_flipped_log, hides=True),
}


def _copy(path: Path, copy: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(path, timeout=30)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


def _checkpoint(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _flip(path: Path, draw: random.Random, start: int, count: int) -> None:
    size = path.stat().st_size
    with path.open("r+b", buffering=0) as file:
        for _ in range(count):
            at = draw.randrange(min(start, size - 1), size)
            file.seek(at)
            old = file.read(1)[0]
            file.seek(at)
            file.write(bytes([old ^ (1 << draw.randrange(8))]))


KINDS: Mapping[str, Kind] = {
    "registry-file": Kind("the file of the registry is harmed during uploads", attack),
}
