"""Each part of a real service is broken in turn, and the readiness check names it."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prompt_serve.errors import NotReady
from prompt_serve.service import health
from prompt_serve.service.core import Core
from prompt_serve.service.health import CHECK_TIMEOUT_S, FRESH_S, Check, sqlite_file
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.settings import Settings

GENEROUS_S = 30.0


@pytest.fixture
def core(tiny_bundle: Path, tmp_path: Path) -> Iterator[Core]:
    with _core(tiny_bundle, tmp_path) as running:
        yield running


@contextlib.contextmanager
def _core(bundle: Path, home: Path) -> Iterator[Core]:
    settings = Settings(
        home=home,
        bundle=bundle,
        engine="onnxruntime",  # whose parts are harmed
        shutdown_timeout_s=1,
        decode_threads=1,
        stale_tasks_s=0,
    )
    core = Core(settings)
    try:
        yield core
    finally:
        core.close()


def _reason(core: Core, *, writing: bool = False) -> str:
    """Wait until the service is not ready, or not writable, and return the reason."""
    check = core.health.check_writable if writing else core.health.check
    give_up = time.monotonic() + GENEROUS_S
    while time.monotonic() < give_up:
        try:
            asyncio.run(check())
        except NotReady as error:
            return error.message
        time.sleep(0.05)
    raise AssertionError("still ready")


def test_a_fault_shows_within_five_seconds() -> None:
    assert FRESH_S + CHECK_TIMEOUT_S < 5


def test_a_service_that_works_is_ready(core: Core) -> None:
    asyncio.run(core.health.check())

    assert core.health.is_alive


def _unplug(part: Callable[[Engine], object]) -> Callable[[Core, pytest.MonkeyPatch], None]:
    def unplug(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(part(core.engine), "_session", None)

    return unplug


def _remove_database(core: Core, _: pytest.MonkeyPatch) -> None:
    (core.settings.home / "registry.db").unlink()


def _spoil_database(core: Core, _: pytest.MonkeyPatch) -> None:
    core.database.close()  # connections that are open go on with what they have read
    for path in core.settings.home.glob("registry.db*"):
        path.write_bytes(b"no database at all" * 500)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_unplug(lambda engine: engine._images.engine), "image encoder failed"),
        (_unplug(lambda engine: engine._text), "text encoder failed"),
        (_remove_database, r"registry failed: .*registry\.db was deleted or moved"),
        (_spoil_database, "registry failed"),
    ],
    ids=["image session", "text session", "database removed", "database damaged"],
)
def test_a_failed_part_is_named(
    core: Core,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Core, pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    asyncio.run(core.health.check())
    harm(core, monkeypatch)

    assert re.search(reason, _reason(core))


def test_a_dead_inference_thread_is_neither_ready_nor_alive(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: object) -> None:
        raise SystemExit  # as near as Python comes to killing a thread

    monkeypatch.setattr(core.batcher, "_infer", die)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    assert "image encoder" in _reason(core) or not core.health.is_alive
    assert not core.health.is_alive
    with pytest.raises(NotReady, match="inference thread died"):
        asyncio.run(core.health.check())


def test_a_check_runs_once_at_a_time_for_any_number_of_probes() -> None:
    running, most, times = 0, 0, 0

    def attempt() -> None:
        nonlocal running, most, times
        running += 1
        most, times = max(most, running), times + 1
        time.sleep(0.05)
        running -= 1

    async def many() -> None:
        check = Check("thing", attempt)
        await asyncio.gather(*(check.run() for _ in range(100)))
        await asyncio.gather(*(check.run() for _ in range(100)))
        check.close()

    asyncio.run(many())
    assert (most, times) == (1, 1)


def test_a_check_that_hangs_fails_and_real_work_beside_it_counts() -> None:
    release, worked_at = threading.Event(), float("-inf")

    async def ask() -> None:
        nonlocal worked_at
        check = Check("thing", release.wait, last_success=lambda: worked_at, timeout_s=0.1)
        with pytest.raises(NotReady, match=r"The thing did not answer within 0.1 s\."):
            await check.run()
        worked_at = time.monotonic()
        await check.run()
        release.set()
        check.close()

    asyncio.run(ask())


def test_only_sqlite_in_a_file_has_a_disk_to_watch() -> None:
    assert sqlite_file("sqlite:////srv/registry.db") == Path("/srv/registry.db")
    assert sqlite_file("sqlite://") is None
    assert sqlite_file("postgresql+psycopg://user@host/tasks") is None


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "6m") -> Iterator[Path]:
    """Mount a file system of ``size``; skips the test if mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if sys.platform != "linux" or mounted.returncode != 0:
        pytest.skip(f"a full disk needs a mount, and mounting failed: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk of ``folder``; returns the file that fills it."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(os.urandom(4096))
    return filler


def test_a_full_disk_is_ready_but_not_writable_until_there_is_room(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk, _core(tiny_bundle, disk) as core:
        asyncio.run(core.health.check_writable())
        filler = fill(disk)
        reason = _reason(core, writing=True)
        asyncio.run(core.health.check())
        filler.unlink()

        assert "The disk failed" in reason
        assert "No space left" in reason
        asyncio.run(core.health.check_writable())


def test_a_readiness_check_leaves_nothing_behind(core: Core, tmp_path: Path) -> None:
    before: set[Any] = set(tmp_path.iterdir())
    health._check_disk(tmp_path / "registry.db")

    assert set(tmp_path.iterdir()) == before
