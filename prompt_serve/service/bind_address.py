"""Address that the service listens on, and whether it may do so without API keys.

BentoML does not pass the address on: the parent process has it among its command-line options, and
a worker has only its socket. The parent checks it to refuse the start with a reason; the worker
checks it to reject requests, however it was started.
"""

import os
import socket

import click
from bentoml._internal.configuration.containers import BentoMLContainer

from prompt_serve.errors import ConfigInvalid
from prompt_serve.service.middleware.auth import AnonymousAccess, is_loopback
from prompt_serve.service.settings import Settings
from prompt_serve.service.storage.api_keys import Keys
from prompt_serve.service.storage.database import Database


def check_bind_address(settings: Settings, host: str) -> None:
    """Refuse to start a service that would answer anyone on a network.

    Raises:
        ConfigInvalid: no key exists, and the address is reachable from other machines.
    """
    if settings.allow_anonymous or settings.oidc_issuer or is_loopback(host):
        return
    if _has_keys(settings):
        return
    raise ConfigInvalid(
        f"The service would listen on {host} without any key: anyone who can reach it could change "
        f"its tasks. Create a key first: prompt-serve keys create NAME --role admin. Or accept "
        f"connections from this machine only: --host 127.0.0.1. Or, if a proxy in front of the "
        f"service authenticates requests, set PROMPT_SERVE_ALLOW_ANONYMOUS=1."
    )


def anonymous_access(settings: Settings) -> AnonymousAccess:
    """Return which requests a worker answers without a key, as long as no key exists."""
    if settings.allow_anonymous:
        return "always"
    if settings.oidc_issuer:
        return "never"
    return "loopback" if is_bound_to_loopback() else "never"


def bind_host() -> str:
    """Return the address to bind: --host, BENTOML_HOST or BentoML's settings. For the parent."""
    context = click.get_current_context(silent=True)
    option = None if context is None else context.params.get("host")
    return str(option or BentoMLContainer.http.host.get())


def is_bound_to_loopback() -> bool:
    """Return True if a worker's socket is reachable from this machine only; False if unknown."""
    context = click.get_current_context(silent=True)
    descriptor = None if context is None else context.params.get("fd")
    if not isinstance(descriptor, int):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        address = listening.getsockname()
    return not isinstance(address, tuple) or is_loopback(address[0])  # a Unix socket has a path


def _has_keys(settings: Settings) -> bool:
    database = Database(settings.database)
    try:
        return Keys(database).exist()
    finally:
        database.close()
