"""``prompt-serve keys``: create, list and revoke API keys, and print the audit log.

Works on the service's database, found by the service's settings (``PROMPT_SERVE_HOME``,
``PROMPT_SERVE_DATABASE_URL``), whether the service is running or not. Anyone who can write to the
database can create keys.
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
    """Parse ``12h``, ``30d`` or ``8w`` from now, or an ISO 8601 date and time.

    Raises:
        click.BadParameter: neither of them.
    """
    if match := re.fullmatch(r"(\d{1,5})([hdw])", text):
        return datetime.now(UTC) + int(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is invalid; expected a duration (12h, 30d, 8w) or a date (2030-01-31)."
        ) from None


@click.group()
def keys() -> None:
    """Create, list and revoke API keys, and print the audit log.

    These commands open the database of the service, as configured by PROMPT_SERVE_HOME and
    PROMPT_SERVE_DATABASE_URL; the service may be running or not.

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
    help="Role of the key: infer classifies images and reads tasks; admin also edits tasks and "
    "reads the audit log.",
)
@click.option(
    "--expires",
    type=expiry,
    metavar="WHEN",
    help="Expiry: 12h, 30d or 8w from now, or a date such as 2030-01-31.  [default: never]",
)
def create(name: str, role: str, expires: datetime | None) -> None:
    """Create a key and print it. It cannot be shown again: the database stores only a hash.

    \b
    prompt-serve keys create ci --role infer --expires 90d
    """
    from prompt_serve.service.storage.api_keys import Keys
    from prompt_serve.service.storage.audit import acting_as

    with _database() as database, acting_as(_user()):
        token, key = Keys(database).create(name, "admin" if role == "admin" else "infer", expires)
    click.echo(token)
    expiry_text = "never expires" if key.expires is None else f"expires {key.expires}"
    click.echo(
        f"Created key {name} ({key.id}), role {role}, {expiry_text}. It cannot be shown again.",
        err=True,
    )


@keys.command("list")
def list_keys() -> None:
    """List all keys with the time of their last use. Includes expired and revoked keys.

    \b
    prompt-serve keys list
    """
    from prompt_serve.service.storage.api_keys import Keys

    now = datetime.now(UTC)
    with _database() as database:
        for key in Keys(database).all():
            click.echo(
                f"{key.name:<24} {key.id}  {key.role:<5}  {key.state(now):<7}  "
                f"created {key.created}  expires {key.expires or 'never'}  "
                f"used {key.last_used or 'never'}"
            )


@keys.command()
@click.argument("name_or_id")
def revoke(name_or_id: str) -> None:
    """Revoke a key by its name or id. Running services reject it within a second.

    \b
    prompt-serve keys revoke ci
    """
    from prompt_serve.service.storage.api_keys import Keys
    from prompt_serve.service.storage.audit import acting_as

    with _database() as database, acting_as(_user()):
        for key in Keys(database).revoke(name_or_id):
            click.echo(f"Revoked key {key.name} ({key.id}).")


@keys.command()
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    help="Maximum number of changes.",
)
@click.option("--subject", help="Only changes to this task or key.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per change.")
def audit(limit: int, subject: str | None, as_json: bool) -> None:
    """Print the audit log, newest change first.

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
    """Return the current user as recorded in the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError, ImportError):  # a user without a name, as in some containers
        return "cli"
