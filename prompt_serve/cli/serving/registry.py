"""``prompt-serve registry``: export, import, back up, restore, check and migrate."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prompt_serve.cli.facts import json_option, print_document, print_fields
from prompt_serve.cli.output_file import OutputFile, written
from prompt_serve.cli.serving.options import (
    Service,
    database_option,
    open_database,
    registry_url,
    service_or_database_options,
)
from prompt_serve.cli.user_path import UserPath, read_input
from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.service.storage.upkeep.check import CheckedRegistry


@click.group()
def registry() -> None:
    """Export and import all tasks; back up, restore, check and migrate the registry database.

    An export holds the tasks, for any other registry. A backup holds everything: history, API
    keys, audit log and class features.

    \b
    prompt-serve registry export -o tasks.zip
    prompt-serve registry import tasks.zip --url http://other-box:3000
    prompt-serve registry backup -o registry-backup.db
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
@click.option(
    "-o",
    "--out",
    type=OutputFile(),
    default=Path("registry-backup.db"),
    show_default=True,
    help="File to write.",
)
@json_option
@database_option
def backup(out: Path, as_json: bool, database_url: str | None) -> None:
    """Copy the registry to one file, with history, API keys and audit log.

    The service may be running. The copy is of one moment, and is kept only if it passes the checks
    of `registry check`. The registry must be an SQLite file; PostgreSQL has pg_dump.

    \b
    prompt-serve registry backup -o registry-backup.db
    """
    url = registry_url(database_url)
    from prompt_serve.service.storage.upkeep.backup import back_up

    checked = back_up(url, out)
    _print_checked(checked, f"Saved to {out}", {"file": str(out)}, as_json=as_json)


@registry.command()
@click.argument("file", type=UserPath(exists=True, dir_okay=False))
@json_option
@database_option
def restore(file: Path, as_json: bool, database_url: str | None) -> None:
    """Replace the registry by a backup. Stop the service first.

    The backup is checked before anything is changed. The former file stays beside the registry
    under another name.

    \b
    prompt-serve registry restore registry-backup.db
    """
    url = registry_url(database_url)
    from prompt_serve.service.storage.upkeep import backup as backups

    restored = backups.restore(file, url)
    kept = None if restored.replaced is None else str(restored.replaced)
    _print_checked(
        restored.checked,
        f"Restored to {restored.path}" + (f"; the former file is {kept}" if kept else ""),
        {"file": str(restored.path), "replaced": kept},
        as_json=as_json,
    )


@registry.command()
@json_option
@database_option
def check(as_json: bool, database_url: str | None) -> None:
    """Check the database and every prompt file in it; the service may be running.

    SQLite checks its pages and references. Each prompt file must have the hash that is its
    version, and be readable. Exits with 1 and lists the faults if there are any.

    \b
    prompt-serve registry check
    prompt-serve registry check --database sqlite:///registry-backup.db
    """
    url = registry_url(database_url)
    from prompt_serve.service.storage.upkeep.check import check_registry

    checked = check_registry(url)
    if as_json and checked.faults:
        print_document({"database": checked.state.url, "faults": list(checked.faults)})
        raise click.exceptions.Exit(1)
    checked.raise_faults()
    _print_checked(checked, "No faults", {}, as_json=as_json)


def _print_checked(
    checked: "CheckedRegistry", what: str, facts: dict[str, str | None], *, as_json: bool
) -> None:
    state = checked.state
    if as_json:
        counts = {"tasks": state.tasks, "versions": state.versions, "revision": state.revision}
        where = {"database": state.url, **facts, "tables": state.tables}
        print_document({**where, **counts, "faults": []})
        return
    counted_rows = (
        ""
        if state.tasks is None or state.versions is None
        else f" {counted(state.tasks, 'task')}, {counted(state.versions, 'prompt file')}."
    )
    click.echo(f"{what}.{counted_rows}")


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
