"""Where the service listens, and whether it may do so without keys.

BentoML tells nobody its address: the parent process has it among the options of its command line, a
worker only has the socket that it was given. So both look, each in its own way: the parent to
refuse the start with a reason, the worker to refuse requests whichever way it was started.
"""

import os
import socket

import click
from bentoml._internal.configuration.containers import BentoMLContainer

from prompt_serve.errors import ConfigInvalid
from prompt_serve.service.middleware.auth import Anonymous, is_loopback
from prompt_serve.service.settings import Settings
from prompt_serve.service.storage.api_keys import Keys
from prompt_serve.service.storage.database import Database


def check_start(settings: Settings) -> None:
    """In the parent: refuse to start a service that would answer everybody on a network.

    Raises:
        ConfigInvalid: there is no key, and the address can be reached from elsewhere.
    """
    host = host_to_bind()
    if settings.allow_anonymous or is_loopback(host) or _has_keys(settings):
        return
    raise ConfigInvalid(
        f"The service would listen on {host} without any key: whoever reaches it could change its "
        f"tasks. Make a key first: prompt-serve keys create NAME --role admin. Or listen on this "
        f"machine alone: --host 127.0.0.1. Or, where something in front of the service asks for "
        f"keys, set PROMPT_SERVE_ALLOW_ANONYMOUS=1."
    )


def anonymous_by(settings: Settings) -> Anonymous:
    """In a worker: when those without a key are answered, as long as there is no key at all."""
    if settings.allow_anonymous:
        return "always"
    return "loopback" if is_bound_to_loopback() else "never"


def host_to_bind() -> str:
    """In the parent: the address that will be bound (--host, BENTOML_HOST, BentoML's settings)."""
    context = click.get_current_context(silent=True)
    given = None if context is None else context.params.get("host")
    return str(given or BentoMLContainer.http.host.get())


def is_bound_to_loopback() -> bool:
    """In a worker: whether its socket can be reached from this machine alone; False if unknown."""
    context = click.get_current_context(silent=True)
    descriptor = None if context is None else context.params.get("fd")
    if not isinstance(descriptor, int):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        name = listening.getsockname()
    return not isinstance(name, tuple) or is_loopback(name[0])  # a Unix socket has a path


def _has_keys(settings: Settings) -> bool:
    database = Database(settings.database)
    try:
        return Keys(database).exist()
    finally:
        database.close()
