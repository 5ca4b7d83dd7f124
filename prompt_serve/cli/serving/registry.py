"""``prompt-serve registry``: export and import all tasks, and migrate the database."""

from functools import partial
from pathlib import Path

import click

from prompt_serve.cli.facts import json_option, print_document, print_fields
from prompt_serve.cli.output_file import OutputFile, written
from prompt_serve.cli.serving.options import (
    Service,
    database_option,
    open_database,
    service_or_database_options,
)
from prompt_serve.cli.user_path import UserPath, read_input
from prompt_serve.errors import counted


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
    type=OutputFile(dash=True),
    default=Path("registry.zip"),
    show_default=True,
    help="File to write, or - for standard output.",
)
@service_or_database_options
def export(out: Path, database_url: str | None, service: Service) -> None:
    """Save all tasks with their prompt files and tags to a zip file.

    \b
    prompt-serve registry export -o backup.zip
    prompt-serve registry export -o - | ssh other-box prompt-serve registry import -
    """
    with written(out) as file:
        if database_url is None:
            with service.client() as client:
                file.write(client.export_registry())
        else:
            from prompt_serve.service.storage.registry import Registry
            from prompt_serve.service.tasks.registry_export import export_registry

            with open_database(database_url) as database:
                file.writelines(export_registry(Registry(database)))


@registry.command("import")
@click.argument("file", type=UserPath(exists=True, dir_okay=False, dash=True))
@json_option
@service_or_database_options
def import_(file: Path, as_json: bool, database_url: str | None, service: Service) -> None:
    """Import all tasks of an exported registry. Existing tasks of the same names are replaced.

    FILE may be - for standard input. Nothing is imported if one of the tasks cannot be served. With
    --database, tasks may be of any backbone, and the class features of a task are computed on its
    first request; PROMPT_SERVE_TRUSTED_KEYS holds for it as for the service.

    \b
    prompt-serve registry import backup.zip --database postgresql://ps@db/tasks
    """
    import io

    data = read_input(file)
    if database_url is None:
        with service.client() as client:
            report = client.import_registry(data)
    else:
        from prompt_serve.service.settings import Settings
        from prompt_serve.service.storage.registry import Registry
        from prompt_serve.service.tasks.bulk import import_zip, without_features
        from prompt_serve.signing.trusted_keys import SignaturePolicy

        signatures = SignaturePolicy(Settings.from_environment().trusted_keys_path)
        with open_database(database_url) as database:
            prepare = partial(without_features, signatures=signatures)
            report = import_zip(Registry(database), io.BytesIO(data), prepare)
    if as_json:
        print_document(report.model_dump(exclude_none=True))
    else:
        click.echo(f"{counted(report.served, 'task')} imported.")


@registry.command()
@json_option
@database_option
def migrate(as_json: bool, database_url: str | None) -> None:
    """Create or upgrade the database tables. The service does the same when it starts.

    \b
    prompt-serve registry migrate --database postgresql://ps@db/tasks
    """
    from prompt_serve.service.storage.migrations import HEAD

    with open_database(database_url) as database:
        if as_json:
            print_document({"database": database.shown_url, "tables": HEAD})
        else:
            click.echo(f"The tables are at version {HEAD}.")


@registry.command()
@json_option
@database_option
def info(as_json: bool, database_url: str | None) -> None:
    """Show the database URL, table version, revision and task count.

    \b
    prompt-serve registry info
    """
    from prompt_serve.service.storage.migrate import schema_version
    from prompt_serve.service.storage.registry import Registry

    with open_database(database_url) as database:
        tasks = Registry(database)
        facts = {
            "database": database.shown_url,
            "tables": database.read(schema_version),
            "revision": tasks.revision(),
            "tasks": tasks.count(),
            "versions": tasks.count_versions(),
        }
    if as_json:
        print_document(facts)
    else:
        counts = {name: f"{facts[name]:,}" for name in ("revision", "tasks", "versions")}
        print_fields({**facts, "tables": f"version {facts['tables']}", **counts})
