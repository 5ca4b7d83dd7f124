"""``prompt-serve keys``: make, list and revoke API keys, and read the audit log.

Works on the service's database, by the service's settings (``PROMPT_SERVE_HOME``,
``PROMPT_SERVE_DATABASE_URL``), whether it is running or not: who can write there may make keys.
"""

import getpass
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prompt_serve.service.storage.database import Database

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def expiry(text: str) -> datetime:
    """``12h``, ``30d``, ``8w`` from now, or a date and time in ISO 8601."""
    if match := re.fullmatch(r"(\d{1,5})([hdw])", text):
        return datetime.now(UTC) + int(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither 12h, 30d or 8w nor a date such as 2030-01-31."
        ) from None


@click.group()
def keys() -> None:
    """Make, list and revoke API keys of the service whose database this machine can reach.

    \b
    prompt-serve keys create ci --role infer --expires 90d
    prompt-serve keys list
    prompt-serve keys revoke ci
    """


@keys.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["infer", "admin"]),
    default="infer",
    show_default=True,
    help="infer asks and reads; admin also changes tasks and reads the audit log.",
)
@click.option(
    "--expires",
    type=expiry,
    metavar="WHEN",
    help="12h, 30d or 8w from now, or a date.  [default: never]",
)
def create(name: str, role: str, expires: datetime | None) -> None:
    """Make a key and print it. It is shown this once: the database holds a hash of it.

    \b
    prompt-serve keys create ci --role infer --expires 90d
    """
    from prompt_serve.service.storage.api_keys import Keys
    from prompt_serve.service.storage.audit import acting_as

    with _database() as database, acting_as(_user()):
        token, key = Keys(database).create(name, "admin" if role == "admin" else "infer", expires)
    click.echo(token)
    until = "" if key.expires is None else f", until {key.expires}"
    click.echo(f"Key {name} ({key.id}), role {role}{until}. It is not shown again.", err=True)


@keys.command("list")
def list_keys() -> None:
    """List all keys there ever were, with when they were last used.

    \b
    prompt-serve keys list
    """
    from prompt_serve.service.storage.api_keys import Keys

    now = datetime.now(UTC)
    with _database() as database:
        for key in Keys(database).all():
            used = key.last_used or "never"
            until = key.expires or "-"
            state = key.state(now)
            click.echo(
                f"{key.name:<24} {key.id}  {key.role:<5}  {state:<7}  "
                f"created {key.created}  expires {until}  used {used}"
            )


@keys.command()
@click.argument("name_or_id")
def revoke(name_or_id: str) -> None:
    """End a key, by its name or id. Running services refuse it within a second.

    \b
    prompt-serve keys revoke ci
    """
    from prompt_serve.service.storage.api_keys import Keys
    from prompt_serve.service.storage.audit import acting_as

    with _database() as database, acting_as(_user()):
        for key in Keys(database).revoke(name_or_id):
            click.echo(f"Key {key.name} ({key.id}) is revoked.")


@keys.command()
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    help="How many changes.",
)
@click.option("--subject", help="Only changes of this task or key.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a change.")
def audit(limit: int, subject: str | None, as_json: bool) -> None:
    """Print who changed what, from the newest change on.

    \b
    prompt-serve keys audit --subject pets
    """
    from prompt_serve.service.storage.audit import AuditLog

    with _database() as database:
        for entry in AuditLog(database).page(limit=limit, subject=subject).entries:
            before, after = (entry.before or "-")[:12], (entry.after or "-")[:12]
            line = (
                f"{entry.time}  {entry.actor:<16} {entry.action:<14} {entry.subject:<24} "
                f"{before} -> {after}"
            )
            click.echo(entry.model_dump_json() if as_json else line)


@contextmanager
def _database() -> "Iterator[Database]":
    from prompt_serve.service.settings import Settings
    from prompt_serve.service.storage.database import Database

    database = Database(Settings.from_environment().database)
    try:
        yield database
    finally:
        database.close()


def _user() -> str:
    """Who is at the keyboard, as the audit log has it."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError, ImportError):  # a container's user without a name
        return "cli"
