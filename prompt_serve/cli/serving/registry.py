"""``prompt-serve registry``: export and import all tasks, and migrate the database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prompt_serve.cli.output_file import OutputFile
from prompt_serve.cli.plurals import counted
from prompt_serve.cli.serving.options import service_options
from prompt_serve.cli.user_path import UserPath
from prompt_serve.files import atomic_file

if TYPE_CHECKING:
    from prompt_serve.service.storage.database import Database


Command = TypeVar("Command", bound=Callable[..., Any])


def _database_option(help_text: str) -> Callable[[Command], Command]:
    return click.option("--database", "database_url", metavar="URL", help=help_text)


_instead_of_service = _database_option(
    "Open this database directly (sqlite:///PATH, postgresql://...) instead of calling the service."
)
_of_service = _database_option(
    "URL of the database.  [default: the service's, from the PROMPT_SERVE_* settings]"
)


@click.group()
def registry() -> None:
    """Export and import all tasks, and migrate the registry database.

    \b
    prompt-serve registry export -o backup.zip
    prompt-serve registry import backup.zip --url http://other-box:3000
    """


@registry.command("export")
@click.option(
    "-o",
    "--out",
    type=OutputFile(),
    default=Path("registry.zip"),
    show_default=True,
    help="File to write.",
)
@_instead_of_service
@service_options
def export(out: Path, database_url: str | None, url: str, timeout_s: float) -> None:
    """Save all tasks with their prompt files and tags to a zip file.

    \b
    prompt-serve registry export -o backup.zip
    """
    from prompt_serve.client import Client

    with atomic_file(out) as temporary, temporary.open("wb") as file:
        if database_url is None:
            with Client(url, timeout_s=timeout_s) as client:
                file.write(client.export_registry())
        else:
            from prompt_serve.service.storage.registry import Registry
            from prompt_serve.service.tasks.registry_export import export_registry

            with _database(database_url) as database:
                file.writelines(export_registry(Registry(database)))
    click.echo(f"{out}: {out.stat().st_size:,} bytes.")


@registry.command("import")
@click.argument("file", type=UserPath(exists=True, dir_okay=False))
@_instead_of_service
@service_options
def import_(file: Path, database_url: str | None, url: str, timeout_s: float) -> None:
    """Import all tasks of an exported registry. Existing tasks of the same names are replaced.

    Nothing is imported if one of the tasks cannot be served. With --database, tasks may be of any
    backbone, and the class features of a task are computed on its first request.

    \b
    prompt-serve registry import backup.zip --database postgresql://ps@db/tasks
    """
    from prompt_serve.client import Client

    if database_url is None:
        with Client(url, timeout_s=timeout_s) as client:
            report = client.import_registry(file.read_bytes())
    else:
        from prompt_serve.service.storage.registry import Registry
        from prompt_serve.service.tasks.bulk import import_zip, without_features

        with _database(database_url) as database, file.open("rb") as opened:
            report = import_zip(Registry(database), opened, without_features)
    click.echo(f"{counted(report.served, 'task')} imported.")


@registry.command()
@_of_service
def migrate(database_url: str | None) -> None:
    """Create or upgrade the database tables. The service does the same when it starts.

    \b
    prompt-serve registry migrate --database postgresql://ps@db/tasks
    """
    from prompt_serve.service.storage.migrations import HEAD

    with _database(database_url):
        click.echo(f"The tables are at version {HEAD}.")


@registry.command()
@_of_service
def info(database_url: str | None) -> None:
    """Show the database URL, table version, revision and task count.

    \b
    prompt-serve registry info
    """
    from prompt_serve.service.storage.migrate import schema_version
    from prompt_serve.service.storage.registry import Registry

    with _database(database_url) as database:
        tasks = Registry(database)
        click.echo(f"database   {database.shown_url}")
        click.echo(f"tables     version {database.read(schema_version)}")
        click.echo(f"revision   {tasks.revision():,}")
        click.echo(f"tasks      {tasks.count():,}")
        click.echo(f"versions   {tasks.count_versions():,}")


@contextmanager
def _database(url: str | None) -> Iterator["Database"]:
    from prompt_serve.errors import DependencyMissing

    try:
        from prompt_serve.service.settings import Settings
        from prompt_serve.service.storage.database import Database
    except ImportError as error:
        raise DependencyMissing(
            "The registry database needs the serve extra: pip install 'prompt-serve[serve]'",
            missing=str(error.name),
        ) from error
    database = Database(url or Settings.from_environment().database)
    try:
        yield database
    finally:
        database.close()
