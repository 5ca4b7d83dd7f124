"""Options that several commands share: the service, its database, tasks, the deadline."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from prompt_serve.cli.user_path import UserPath

if TYPE_CHECKING:
    from prompt_serve.client import Client
    from prompt_serve.service.storage.database import Database

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Service:
    """Address of a running service, and how to call it."""

    url: str
    api_key: str | None
    timeout_s: float

    def client(self, **options: Any) -> "Client":
        """Return a client of the service; ``options`` are further arguments of ``Client``."""
        from prompt_serve.client import Client

        return Client(self.url, api_key=self.api_key, timeout_s=self.timeout_s, **options)


def service_options(command: Command) -> Command:
    """Add ``--url``, ``--api-key`` and ``--timeout``; the command receives them as ``service``."""

    @functools.wraps(command)
    def with_service(
        *arguments: Any, url: str, api_key: str | None, timeout_s: float, **options: Any
    ) -> Any:
        if options.get("database_url") is not None:
            _check_one_target()
        return command(*arguments, service=Service(url, api_key, timeout_s), **options)

    for option in (
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0, min_open=True),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="Time limit of each attempt of a request.",
        ),
        click.option(
            "--api-key",
            envvar="PROMPT_SERVE_API_KEY",
            show_envvar=True,
            metavar="KEY",
            help="API key for the service. Other users of this machine can read it on the command "
            "line, but not in the variable.",
        ),
        click.option(
            "--url",
            default="http://localhost:3000",
            show_default=True,
            envvar="PROMPT_SERVE_URL",
            show_envvar=True,
            metavar="URL",
            help="URL of the service, with or without /v1.",
        ),
    ):
        option(with_service)
    return with_service  # type: ignore[return-value]  # the same command to click


def database_option(command: Command) -> Command:
    """Add ``--database``, for commands that open the database of the service."""
    return _database_option(
        "PROMPT_SERVE_DATABASE_URL, or registry.db in the folder PROMPT_SERVE_HOME"
    )(command)


def service_or_database_options(command: Command) -> Command:
    """Add the options of ``service_options``, and ``--database`` to be used in their place."""
    return service_options(_database_option("call the service")(command))


def _database_option(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--database",
        "database_url",
        metavar="URL",
        help=f"Database of the service (sqlite:///PATH, postgresql://...), opened directly; the "
        f"service may be running or not.  [default: {default}]",
    )


def _check_one_target() -> None:
    """Raise UsageError if the command line names both a database and a service."""
    context = click.get_current_context()
    for name in ("url", "api_key"):
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--database and --{name.replace('_', '-')} exclude each other: with --database, "
                f"the service is not called."
            )


def registry_url(url: str | None) -> str:
    """Return the URL of a database; None for that of the service's settings.

    Raises:
        DependencyMissing: the extra ``serve`` is not installed.
    """
    from prompt_serve.errors import DependencyMissing

    try:
        from prompt_serve.service.settings import Settings
        from prompt_serve.service.storage import database  # noqa: F401 (the extra is installed)
    except ImportError as error:
        raise DependencyMissing(
            "The database of the service needs the serve extra: pip install 'prompt-serve[serve]'",
            missing=str(error.name),
        ) from error
    return url or Settings.from_environment().database


@contextmanager
def open_database(url: str | None) -> Iterator["Database"]:
    """Open a database for the commands of a block; None for that of the service's settings.

    Raises:
        DependencyMissing: the extra ``serve`` is not installed.
    """
    found = registry_url(url)
    from prompt_serve.service.storage.database import Database

    database = Database(found)
    try:
        yield database
    finally:
        database.close()


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


def top_tasks_option(command: Command) -> Command:
    """Add ``--top-tasks``, the number of tasks per image."""
    return click.option(
        "--top-tasks",
        type=click.IntRange(min=1),
        metavar="K",
        help="Only the K best tasks per image, by the probability of their best class; tasks that "
        "find the image unknown come last.  [default: all tasks]",
    )(command)


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


def bundle_option(command: Command) -> Command:
    """Add ``--bundle``, for commands that run an exported backbone in this process."""
    return click.option(
        "--bundle",
        metavar="FOLDER",
        type=UserPath(path_type=str),
        help="Exported backbone, or embedded or embedded-vit, which come with the package.  "
        "[default: PROMPT_SERVE_BUNDLE, else the shipped one that the prompts were learned on]",
    )(command)


def device_option(command: Command) -> Command:
    """Add ``--device``, which runs the image encoder."""
    return click.option(
        "--device",
        default="cpu",
        show_default=True,
        envvar="PROMPT_SERVE_DEVICE",
        help="Device of the image encoder: cpu, cuda or cuda:N.",
    )(command)
