"""Starts that cannot succeed say why once; a database server that is late is waited for."""

import json
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import pytest
from circus.sockets import CircusSockets

from prompt_serve.bundle import MANIFEST
from prompt_serve.errors import ConfigInvalid, NotReady, ServiceError
from prompt_serve.service.settings import Settings
from prompt_serve.service.startup import check_port, check_registry, report_port_taken
from prompt_serve.service.storage.database import Database
from tests.required import program_missing
from tests.service.databases import postgres_programs, postgres_server
from tests.service.process import (
    Served,
    environment,
    free_port,
    refused_start,
    starting_service,
    wait_until_ready,
)
from tests.service.test_faults import add_task, ask, status, wait_for, workers
from tests.service.test_health import fill, small_disk


def _text(path: Path) -> None:
    path.write_text("This is not a database, although its name says so.")


def _folder(path: Path) -> None:
    path.mkdir()


def _cut(path: Path) -> None:
    Database(f"sqlite:///{path}").close()
    path.write_bytes(path.read_bytes()[:5000])


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
        connection.commit()


def _broken_link(path: Path) -> None:
    path.symlink_to("/nowhere/registry.db")


@pytest.mark.serve
@pytest.mark.slow
def test_a_start_that_cannot_succeed_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    _text(tmp_path / "registry.db")
    settings = environment(tmp_path, tiny_bundle)
    with _listening("127.0.0.1") as port:
        no_port = refused_start(settings, "--port", str(port))
    no_registry = refused_start(settings)
    copied = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copied)
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["text_layers"] += 1
    (copied / MANIFEST).write_text(json.dumps(manifest))
    no_bundle = refused_start(environment(tmp_path, copied))

    assert no_bundle.count("cannot start") == no_bundle.count("do not fit its manifest") == 1
    assert no_port.count("cannot start") == no_port.count("another program uses it") == 1
    assert no_registry.count("cannot start") == no_registry.count("file is not a database") == 1


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_text, "file is not a database"),
        (_folder, "unable to open database file"),
        (_cut, "malformed"),
        (_foreign, "version 9999"),
        (_broken_link, "unable to open database file"),
    ],
)
def test_a_file_that_is_no_registry_stops_the_start(
    spoil: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    spoil(tmp_path / "registry.db")

    with pytest.raises(ServiceError, match=reason):
        check_registry(Settings(home=tmp_path))


@pytest.mark.parametrize("home", ["file", "file/below", "/proc/none", "/dev/null", "/dev/null/x"])
def test_a_home_that_cannot_be_made_stops_the_start(home: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotReady, match=rf"{home}/registry.db cannot be opened: the folder .* made"):
        check_registry(Settings(home=tmp_path / home))


def test_a_full_disk_stops_the_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk)
        with pytest.raises(NotReady, match=r"cannot be opened: .*(disk is full|disk I/O error)"):
            check_registry(Settings(home=disk))


@pytest.mark.parametrize("exists", [True, False])
def test_a_read_only_disk_stops_the_start(exists: bool, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        if exists:
            Database(f"sqlite:///{disk / 'registry.db'}").close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(
            NotReady, match=r"cannot be opened: (unable|attempt to write|the file .*: Read-only)"
        ):
            check_registry(Settings(home=disk))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::"])
def test_a_port_in_use_is_told(address: str) -> None:
    with _listening(address) as port, _command_line(host=address, port=port):
        with pytest.raises(ConfigInvalid, match=rf"Port {port} of {address} .*another program"):
            check_port()
        with _command_line(host=address, port=free_port()):
            check_port()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::"])
def test_a_port_that_is_taken_after_the_check_is_told(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CircusSockets, "bind_and_listen_all", CircusSockets.bind_and_listen_all)
    report_port_taken()
    with _listening(address) as port, _command_line(host=address, port=port):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sockets = CircusSockets()
        sockets.add("server", host=address, port=port, family=family)
        with pytest.raises(SystemExit, match=rf"cannot start: Port {port} of .*another program"):
            sockets.bind_and_listen_all()
        sockets.close_all()


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("192.0.2.1", 3000, "this machine does not have that address"),
        ("127.0.0.1", 70_000, "0-65535"),
        ("no.such.host.invalid", 3000, "not known|resolution"),
    ],
)
def test_an_impossible_address_is_told(host: str, port: int, reason: str) -> None:
    with _command_line(host=host, port=port), pytest.raises(ConfigInvalid, match=reason):
        check_port()


@contextmanager
def _listening(address: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as other:
        other.bind((address, 0))
        other.listen()
        yield other.getsockname()[1]


@contextmanager
def _command_line(**options: str | int) -> Iterator[None]:
    context = click.Context(click.Command("serve"))
    context.params = dict(options)
    with context.scope():
        yield


@pytest.mark.serve
@pytest.mark.slow
def test_a_database_that_never_comes_ends_the_start(tiny_bundle: Path, tmp_path: Path) -> None:
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/none"
    with pytest.raises(NotReady, match="Connection refused") as at_once:
        check_registry(Settings(home=tmp_path, database_url=url, database_wait_s=0))

    later = refused_start(environment(tmp_path, tiny_bundle, database_url=url, database_wait_s="2"))

    assert "prompt-serve waits 2 s at most" in later
    assert later.count("prompt-serve stops: waited 2 s") == 1
    assert "secret" not in str(at_once.value) + later


@contextmanager
def _empty_folder() -> Iterator[Path]:
    # A socket's path may have 107 bytes, and pytest's folders are for their owner alone.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "server"


@pytest.mark.serve
@pytest.mark.slow
def test_a_service_answers_503_until_its_database_is_there(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    programs = postgres_programs()
    if programs is None:
        program_missing("PostgreSQL is not installed")
    with _empty_folder() as folder:
        url = f"postgresql://postgres@/postgres?host={folder}"
        with starting_service(tmp_path, tiny_bundle, database_url=url) as served:
            wait_for("an answer", lambda: status(served, "livez") == 200)
            assert status(served, "readyz") == 503
            refusal = ask(served, "pets")
            assert (refusal.status_code, refusal.json()["code"]) == (503, "not-ready")
            assert "Retry-After" in refusal.headers

            with postgres_server(programs, folder):
                wait_until_ready(served)
                add_task(served, "pets")
                assert ask(served, "pets").status_code == 200

                # A worker that dies while the database is away comes back the same way.
                server_socket = folder / ".s.PGSQL.5432"
                server_socket.rename(folder / "away")
                (worker,) = workers(served)
                worker.kill()
                wait_for("503 by another worker", lambda: _new_503(served, worker.pid))
                time.sleep(3)
                (waiting,) = workers(served)
                assert status(served, "livez") == 200
                (folder / "away").rename(server_socket)
                wait_until_ready(served)
                assert [process.pid for process in workers(served)] == [waiting.pid]
                assert ask(served, "pets").status_code == 200


def _new_503(served: Served, old_pid: int) -> bool:
    return status(served, "readyz") == 503 and old_pid not in [p.pid for p in workers(served)]
