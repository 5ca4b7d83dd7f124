"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def service_options(command: Command) -> Command:
    """Add ``--url`` and ``--timeout``, for commands that call a running service."""
    url = click.option(
        "--url",
        default="http://localhost:3000",
        show_default=True,
        envvar="PROMPT_SERVE_URL",
        show_envvar=True,
        metavar="URL",
        help="URL of the service, with or without /v1.",
    )
    timeout = click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="Time limit of each attempt of a request.",
    )
    return url(timeout(command))


def task_options(command: Command) -> Command:
    """Add ``--task`` and ``--tag``; both are repeatable, and one of them is required."""
    task = click.option(
        "--task",
        "tasks",
        multiple=True,
        metavar="NAME",
        help="Task to use, NAME@VERSION for one version of it, '*' for all tasks. Repeatable: "
        "--task pets --task colors.",
    )
    tag = click.option(
        "--tag",
        "tags",
        multiple=True,
        metavar="TAG",
        help="Use all tasks that have this tag. Repeatable.",
    )
    return task(tag(command))


def check_tasks(tasks: tuple[str, ...], tags: tuple[str, ...]) -> None:
    """Raise a usage error if neither a task nor a tag was given."""
    if not tasks and not tags:
        raise click.UsageError("Missing option '--task' (or '--tag').")


def deadline_option(command: Command) -> Command:
    """Add ``--deadline``, the time limit of a request in the service."""
    return click.option(
        "--deadline",
        "deadline_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Time limit of each request in the service; images that are not encoded by then get "
        "an error.  [default: the service's own limit]",
    )(command)
