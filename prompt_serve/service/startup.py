"""Checks of the parent process that need the command line: port, registry, address.

A registry that cannot be opened stops the start with its reason. A database server may still be
starting itself: the workers then answer 503 and connect when it is there, and the parent stops them
all after ``database_wait_s``.
"""

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import click
from bentoml._internal.configuration.containers import BentoMLContainer
from circus.sockets import CircusSockets
from sqlalchemy.engine import make_url

from prompt_serve.errors import ConfigInvalid, NotReady, PromptServeError
from prompt_serve.service.bind_address import bind_host, check_bind_address
from prompt_serve.service.settings import Settings
from prompt_serve.service.storage.database import Database, parse_url, sqlite_path
from prompt_serve.service.storage.sqlite_file import make_private

RETRY_S = 1.0
_REASONS = {
    errno.EADDRINUSE: "another program uses it, perhaps another prompt-serve",
    errno.EACCES: "ports below 1024 are for root alone",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
}


def check_port() -> None:
    """Check that the address and port can be listened on.

    Raises:
        ConfigInvalid: they cannot.
    """
    host, port = bind_host(), bind_port()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as BentoML's socket
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise _port_unusable(host, port, error) from error


def report_port_taken() -> None:
    """Make the supervisor say in one line that another program took the port after the check."""
    original = CircusSockets.bind_and_listen_all

    def bind_and_listen_all(self: Any) -> None:
        try:
            original(self)
        except OSError as error:
            sys.exit(
                f"prompt-serve cannot start: {_port_unusable(bind_host(), bind_port(), error)}"
            )

    CircusSockets.bind_and_listen_all = bind_and_listen_all


def _port_unusable(host: str, port: int, error: Exception) -> ConfigInvalid:
    reason = _REASONS.get(getattr(error, "errno", None) or 0, str(error))
    return ConfigInvalid(
        f"Port {port} of {host} cannot be used: {reason}. Choose another one, for example "
        f"--port {port + 1 if 1024 <= port < 65_535 else 3001}."
    )


def print_addresses() -> None:
    """Print where the page and the API's documentation will be."""
    host = bind_host()
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104 (compared, not bound)
    url = f"http://{shown}:{bind_port()}/v1"
    click.echo(f"prompt-serve starts. Page: {url}/ui  API: {url}/docs")


def bind_port() -> int:
    """Return the port to bind: --port, or BentoML's settings. For the parent."""
    context = click.get_current_context(silent=True)
    option = None if context is None else context.params.get("port")
    return int(option or BentoMLContainer.http.port.get())


def check_registry(settings: Settings) -> None:
    """Open the registry once, and check that the service may listen on its address.

    If a database server does not answer, a thread waits for it, and ends the service if it does not
    come up in time.

    Raises:
        NotReady: an SQLite registry cannot be opened or written.
        ConfigInvalid, DatabaseUnsupported, DependencyMissing: the registry cannot be used.
    """
    host = bind_host()

    def check() -> None:
        _open(settings)
        check_bind_address(settings, host)

    try:
        check()
    except NotReady as error:
        if settings.database.startswith("sqlite") or not settings.database_wait_s:
            raise
        click.echo(f"prompt-serve waits {settings.database_wait_s:g} s at most. {error}", err=True)
        waiting = threading.Thread(target=_wait, args=(check, settings, _stopper()), daemon=True)
        waiting.start()


def _open(settings: Settings) -> None:
    if mended := make_private(settings.home_path, sqlite_path(parse_url(settings.database))):
        shown = ", ".join(map(str, mended))
        click.echo(f"prompt-serve removed the access of other users to {shown}.")
    try:
        database = Database(settings.database)
    except NotReady as error:
        raise _cannot_open(settings, error) from error
    try:
        with database.write(raise_revision=False):
            pass  # a file that is only readable opens as well
    except NotReady as error:
        raise _cannot_open(settings, error) from error
    finally:
        database.close()


def _cannot_open(settings: Settings, error: NotReady) -> NotReady:
    shown = make_url(settings.database).render_as_string(hide_password=True)
    return NotReady(
        f"The registry {shown} cannot be opened: {error.facts['reason']}. "
        f"PROMPT_SERVE_HOME (a folder) or PROMPT_SERVE_DATABASE_URL chooses the registry."
    )


def _wait(check: Callable[[], None], settings: Settings, stop: Callable[[str], None]) -> None:
    give_up = time.monotonic() + settings.database_wait_s
    while True:
        time.sleep(RETRY_S)
        try:
            check()
            return
        except NotReady as error:
            if time.monotonic() > give_up:
                stop(f"waited {settings.database_wait_s:g} s. {error}")
                return
        except PromptServeError as error:
            stop(str(error))
            return


def _stopper() -> Callable[[str], None]:
    """Return a function that ends the service with exit code 1 and a reason. For the main thread.

    The exit code is set when the command of BentoML ends: it ends with 0 by itself.
    """
    context = click.get_current_context()
    stopped = threading.Event()
    context.call_on_close(lambda: sys.exit(1) if stopped.is_set() else None)

    def stop(reason: str) -> None:
        click.echo(f"prompt-serve stops: {reason}", err=True)
        stopped.set()
        os.kill(os.getpid(), signal.SIGTERM)

    return stop
