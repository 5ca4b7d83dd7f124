"""Where the service listens. BentoML tells nobody: the parent process has it among the options of
its command line, a worker only has the socket that it was given.
"""

import os
import socket

import click
from bentoml._internal.configuration.containers import BentoMLContainer

from prompt_serve.service.access import is_loopback


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
