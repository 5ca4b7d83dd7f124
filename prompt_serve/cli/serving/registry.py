"""``prompt-serve registry``: a whole registry at once, and the tables of its database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prompt_serve.cli.serving.options import service_options
from prompt_serve.files import atomic_file

if TYPE_CHECKING:
    from prompt_serve.service.storage.database import Database


Command = TypeVar("Command", bound=Callable[..., Any])


def _database_option(help_text: str) -> Callable[[Command], Command]:
    return click.option("--database", "database_url", metavar="URL", help=help_text)


_INSTEAD = _database_option(
    "Use this database itself (sqlite:///PATH, postgresql://...), with no service running."
)
_WHICH = _database_option(
    "URL of the database.  [default: the service's own, as PROMPT_SERVE_* say]"
)


@click.group()
def registry() -> None:
    """Export, import and upgrade the registry of tasks.

    \b
    prompt-serve registry export -o backup.zip
    prompt-serve registry import backup.zip --url http://other-box:3000
    """


@registry.command("export")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("registry.zip"),
    show_default=True,
    help="File to write.",
)
@_INSTEAD
@service_options
def export(out: Path, database_url: str | None, url: str, timeout_s: float) -> None:
    """Save all tasks with their prompt files and tags as a zip.

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
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_INSTEAD
@service_options
def import_(file: Path, database_url: str | None, url: str, timeout_s: float) -> None:
    """Take over all tasks of an exported registry; those of the same names are replaced.

    All of them or, where one cannot be served, none. Into a database itself (--database) any
    number of tasks, of any backbone: what each needs is computed when it is first asked for.

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
    click.echo(f"{report.served:,} tasks are there.")


@registry.command()
@_WHICH
def migrate(database_url: str | None) -> None:
    """Make or upgrade the tables of the database now; a start of the service does the same.

    \b
    prompt-serve registry migrate --database postgresql://ps@db/tasks
    """
    from prompt_serve.service.storage.migrations import HEAD

    with _database(database_url):
        click.echo(f"The tables are of version {HEAD}.")


@registry.command()
@_WHICH
def info(database_url: str | None) -> None:
    """Tell what the database holds.

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
            "The database needs the service's parts: pip install 'prompt-serve[serve]'",
            missing=str(error.name),
        ) from error
    database = Database(url or Settings.from_environment().database)
    try:
        yield database
    finally:
        database.close()
