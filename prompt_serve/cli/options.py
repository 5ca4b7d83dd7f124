"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def service_options(command: Command) -> Command:
    """``--url`` and ``--timeout``, for commands that ask a running service."""
    url = click.option(
        "--url",
        default="http://localhost:3000",
        show_default=True,
        envvar="PROMPT_SERVE_URL",
        show_envvar=True,
        help="Address of the service.",
    )
    timeout = click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        show_default=True,
        help="Seconds to wait for an answer, each attempt.",
    )
    return url(timeout(command))


def task_option(command: Command) -> Command:
    """``--task``, which may be given several times."""
    return click.option(
        "--task",
        "tasks",
        multiple=True,
        required=True,
        metavar="NAME",
        help="Task to ask; give it again for more: --task pets --task colours.",
    )(command)
