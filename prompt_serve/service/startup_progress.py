"""Lines that show that a start goes on, until a worker answers.

The parent process prints them, with or without a terminal: a worker imports its libraries for
seconds before it can log, and longer on a machine that is busy or starts for the first time.
"""

import contextlib
import http.client
import ssl
import threading
import time
from collections.abc import Callable

import click
import psutil

from prompt_serve import __version__
from prompt_serve.service.settings import Settings

TICK_S = 5.0  # between two lines; six times as long after the first minute
RETRY_S = 0.2
_ANSWER_TIMEOUT_S = 30.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not bound)


def show_progress(settings: Settings, host: str, port: int) -> None:
    """Print what starts, then a line every few seconds until a worker answers; returns at once.

    Args:
        settings: settings of the service.
        host: address that the service listens on.
        port: port that the service listens on.
    """
    context = click.get_current_context(silent=True)
    is_tls = context is not None and bool(context.params.get("ssl_certfile"))
    workers = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
    click.echo(
        f"prompt-serve {__version__} loads the backbone {settings.bundle_path.name} in {workers}. "
        f"This usually takes 5 to 30 s."
    )
    started = psutil.Process().create_time()
    answered = threading.Event()
    address = (_ANYWHERE.get(host, host), port)
    for target in (
        lambda: wait_for_answer(address, answered, is_tls=is_tls),
        lambda: print_until(answered, lambda: time.time() - started, click.echo),
    ):
        threading.Thread(target=target, daemon=True).start()


def print_until(
    answered: threading.Event,
    elapsed_s: Callable[[], float],
    echo: Callable[[str], object],
    *,
    tick_s: float = TICK_S,
) -> None:
    """Print the elapsed time every ``tick_s``, and the total when ``answered`` is set."""
    while not answered.wait(tick_s):
        echo(f"prompt-serve is starting: {elapsed_s():.0f} s.")
        if elapsed_s() > 12 * tick_s:
            tick_s = max(tick_s, 6 * TICK_S)
    echo(f"prompt-serve is ready after {elapsed_s():.0f} s.")


def wait_for_answer(
    address: tuple[str, int], answered: threading.Event, *, is_tls: bool = False
) -> None:
    """Set ``answered`` when a worker says that it is ready."""
    while not _is_ready(address, is_tls=is_tls):
        time.sleep(RETRY_S)
    answered.set()


def _is_ready(address: tuple[str, int], *, is_tls: bool) -> bool:
    host, port = address
    timeout_s = _ANSWER_TIMEOUT_S
    # One request waits in the socket's queue until a worker accepts it.
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout_s, context=_without_checks())
        if is_tls
        else http.client.HTTPConnection(host, port, timeout=timeout_s)
    )
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except ssl.SSLError:  # the worker asks for a client's certificate, so it is there
            return True
        except (OSError, http.client.HTTPException):
            return False


def _without_checks() -> ssl.SSLContext:
    """Return a TLS context for a question to this machine that sends and learns no secret."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
