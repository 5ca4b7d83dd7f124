"""Two services that start at the same moment: on one port, on one home, with two bundles."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prompt_serve.errors import NotReady
from prompt_serve.service.settings import Settings
from prompt_serve.service.startup import check_registry
from prompt_serve.service.storage import database as database_module
from prompt_serve.service.storage.database import Database
from tests.service.process import (
    ROOT,
    Served,
    environment,
    free_port,
    service,
    starting_service,
    stop,
    wait_until_ready,
)
from tests.service.prompts import picture
from tests.service.test_faults import add_task, ask, wait_for

PNG = {"content-type": "image/png"}


@contextlib.contextmanager
def contender(home: Path, bundle: Path, port: int) -> Iterator[Served]:
    """Start a service on a port that another one starts on as well."""
    home.mkdir(exist_ok=True)
    log = home / f"service-{len(list(home.iterdir()))}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", ".", "--port", str(port)],
            cwd=ROOT,
            env=environment(home, bundle),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Served(f"http://127.0.0.1:{port}", home, log, process)
    finally:
        stop(process)


@pytest.mark.serve
@pytest.mark.long
@pytest.mark.parametrize("homes", ["one home", "two homes"])
@pytest.mark.parametrize("turn", range(3))
def test_of_two_services_on_one_port_one_says_why_it_ends(
    homes: str, turn: int, tiny_bundle: Path, tmp_path: Path
) -> None:
    port = free_port()
    first_home = tmp_path / "first"
    second_home = first_home if homes == "one home" else tmp_path / "second"
    with (
        contender(first_home, tiny_bundle, port) as first,
        contender(second_home, tiny_bundle, port) as second,
    ):
        both = [first, second]
        wait_for("the end of one", lambda: any(one.process.poll() is not None for one in both))
        [ended] = [one for one in both if one.process.poll() is not None]
        [left] = [one for one in both if one is not ended]
        wait_until_ready(left)
        add_task(left, "pets")
        assert ask(left, "pets").status_code == 200

    said = ended.log.read_text()
    assert ended.process.returncode == 1
    assert "Traceback" not in said
    assert said.count("cannot start") == said.count("another program uses it") == 1
    assert "Traceback" not in left.log.read_text()
    assert left.process.returncode == 0


@pytest.mark.serve
@pytest.mark.long
@pytest.mark.parametrize("turn", range(3))
def test_two_services_may_create_one_home_at_the_same_moment(
    turn: int, tiny_bundle: Path, tmp_path: Path
) -> None:
    home = tmp_path / "new"
    with (
        starting_service(home, tiny_bundle) as one,
        starting_service(home, tiny_bundle) as two,
    ):
        for served in (one, two):
            wait_until_ready(served)
        add_task(one, "pets")
        assert ask(two, "pets").status_code == 200
    assert "Traceback" not in one.log.read_text()


@pytest.mark.serve
@pytest.mark.long
def test_two_bundles_on_one_home_serve_the_tasks_of_their_backbone(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with (
        service(tmp_path, tiny_bundle) as tiny,
        service(tmp_path, Path("embedded")) as embedded,
    ):
        for served, name in ((tiny, "of-tiny"), (embedded, "of-embedded")):
            add_task(served, name)
        answers = {
            (bundle, name): ask(served, name)
            for bundle, served in (("tiny", tiny), ("embedded", embedded))
            for name in ("of-tiny", "of-embedded")
        }
        for (bundle, name), answer in answers.items():
            if name == f"of-{bundle}":
                assert answer.status_code == 200
            else:
                assert answer.status_code == 422
                assert answer.json()["code"] == "backbone-mismatch"
        for served in (tiny, embedded):
            every = httpx.post(
                f"{served.url}/v1/classify?task=*", content=picture(), headers=PNG, timeout=60
            )
            assert every.status_code == 200
            assert len(every.json()["results"][0]["predictions"]) == 1
            assert httpx.get(f"{served.url}/readyz").status_code == 200


_HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_registry_that_another_program_holds_is_told_and_its_lock_ends_with_it(
    begin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.2)
    path = tmp_path / "registry.db"
    Database(f"sqlite:///{path}").close()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path), begin],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(NotReady, match=r"cannot be opened: .*locked"):
            check_registry(Settings(home=tmp_path, allow_anonymous=True))
        holder.kill()
    check_registry(Settings(home=tmp_path, allow_anonymous=True))


def test_a_registry_whose_writer_was_killed_opens(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    Database(f"sqlite:///{path}").close()
    for statement in (
        "BEGIN EXCLUSIVE",
        "BEGIN IMMEDIATE; UPDATE revision SET value = 99",
        "UPDATE revision SET value = value + 1",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA locking_mode = EXCLUSIVE; UPDATE revision SET value = value + 1",
    ):
        with subprocess.Popen(
            [
                sys.executable,
                "-c",
                _HOLDER.replace("execute(", "executescript("),
                str(path),
                statement,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            holder.kill()
        check_registry(Settings(home=tmp_path, allow_anonymous=True))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT value FROM revision").fetchone() == (2,)
