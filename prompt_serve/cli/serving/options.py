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


def task_options(command: Command) -> Command:
    """``--task`` and ``--tag``, which may be given several times; one of them must be."""
    task = click.option(
        "--task",
        "tasks",
        multiple=True,
        metavar="NAME",
        help="Task to ask; give it again for more: --task pets --task colors. NAME@VERSION is one "
        "version of a task, '*' is all tasks.",
    )
    tag = click.option(
        "--tag",
        "tags",
        multiple=True,
        metavar="TAG",
        help="Ask all tasks that have this tag. May be repeated.",
    )
    return task(tag(command))


def check_tasks(tasks: tuple[str, ...], tags: tuple[str, ...]) -> None:
    """Raise a usage error where neither a task nor a tag was given."""
    if not tasks and not tags:
        raise click.UsageError("Missing option '--task' (or '--tag').")


def deadline_option(command: Command) -> Command:
    """``--deadline``: how long the service may take."""
    return click.option(
        "--deadline",
        "deadline_s",
        type=click.FloatRange(min=0, min_open=True),
        help="Seconds the service may take over a request; images that wait longer are errors. "
        "[default: the service's own limit]",
    )(command)
