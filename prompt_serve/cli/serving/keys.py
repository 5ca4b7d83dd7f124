"""``prompt-serve keys``: create, list, rotate and revoke API keys, and print the audit log.

Works on the service's database, found by ``--database`` or the service's settings
(``PROMPT_SERVE_HOME``, ``PROMPT_SERVE_DATABASE_URL``), whether the service is running or not.
Anyone who can write to the database can create keys.
"""

import getpass
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import (
    json_lines_option,
    json_option,
    print_document,
    print_json_lines,
    print_table,
    to_the_second,
)
from prompt_serve.cli.serving.options import database_option, open_database

if TYPE_CHECKING:
    from prompt_serve.service.storage.api_keys import StoredKey
    from prompt_serve.service.storage.database import Database
    from prompt_serve.service.storage.stored_quota import Stored

_DURATION = re.compile(r"(\d{1,5})([hdw])")
_POSITIVE = click.FloatRange(0, min_open=True)
_COUNT = click.IntRange(1)
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def expiry(text: str) -> datetime:
    """Parse ``12h``, ``30d`` or ``8w`` from now, or an ISO 8601 date and time.

    Raises:
        click.BadParameter: neither of them.
    """
    if _DURATION.fullmatch(text):
        return datetime.now(UTC) + duration(text)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is invalid; expected a duration (12h, 30d, 8w) or a date (2030-01-31)."
        ) from None


def duration(text: str) -> timedelta:
    """Parse ``12h``, ``30d`` or ``8w``.

    Raises:
        click.BadParameter: it is not one.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is invalid; expected a duration (12h, 30d, 8w).")
    return int(match[1]) * _UNITS[match[2]]


expires_option = click.option(
    "--expires",
    type=expiry,
    metavar="WHEN",
    help="Expiry: 12h, 30d or 8w from now, or a date such as 2030-01-31.  [default: never]",
)


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys, and print the audit log.

    These commands open the database of the service, as given by --database, or configured by
    PROMPT_SERVE_HOME and PROMPT_SERVE_DATABASE_URL; the service may be running or not.

    \b
    prompt-serve keys create ci --role infer --expires 90d
    prompt-serve keys create shop --allow read --allow classify --task 'shop/*'
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
    help="Role of the key: infer may read and classify; admin may do everything.",
)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["read", "classify", "upload", "admin"]),
    help="Action that the key may do, instead of a role; several times. read lists and downloads "
    "tasks; upload also changes them; admin reads the audit log, exports, imports and pins.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="Only tasks of this name, or with * at the end, of names that begin so; several times.  "
    "[default: all tasks]",
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    help="Only tasks with this tag, for keys that read and classify; several times.",
)
@expires_option
@click.option("--requests-per-s", type=_POSITIVE, help="Requests per second.")
@click.option("--images-per-s", type=_POSITIVE, help="Images per second.")
@click.option("--concurrency", type=_COUNT, help="Requests being answered at once.")
@click.option("--max-tasks", type=_COUNT, help="Number of tasks that the key may see.")
@click.option(
    "--max-bytes", type=_COUNT, help="Bytes of the prompt files of these tasks, with kept versions."
)
@json_option
@database_option
def create(
    name: str,
    role: str,
    allow: tuple[str, ...],
    tasks: tuple[str, ...],
    tags: tuple[str, ...],
    expires: datetime | None,
    requests_per_s: float | None,
    images_per_s: float | None,
    concurrency: int | None,
    max_tasks: int | None,
    max_bytes: int | None,
    as_json: bool,
    database_url: str | None,
) -> None:
    """Create a key and print it. It cannot be shown again: the database stores only a hash.

    \b
    prompt-serve keys create ci --role infer --expires 90d
    prompt-serve keys create shop --allow read --allow upload --task 'shop/*' --max-tasks 100
    """
    from prompt_serve.service.permissions import ROLES, Permissions, Quota
    from prompt_serve.service.storage.api_keys import Keys
    from prompt_serve.service.storage.audit import acting_as

    actions = allow or ROLES["admin" if role == "admin" else "infer"]
    permissions = Permissions.checked(actions, tasks, tags)
    quota = Quota(
        requests_per_s=requests_per_s,
        images_per_s=images_per_s,
        concurrency=concurrency,
        tasks=max_tasks,
        stored_bytes=max_bytes,
    )
    with open_database(database_url) as database, acting_as(_user()):
        token, key = Keys(database).create(name, permissions, expires, quota)
    _print_new(token, key, as_json)


@keys.command()
@click.argument("name")
@click.option(
    "--overlap",
    type=duration,
    default="24h",
    show_default=True,
    metavar="TIME",
    help="Time for which the old key stays valid: 12h, 1d or 1w; 0h ends it now.",
)
@expires_option
@json_option
@database_option
def rotate(
    name: str,
    overlap: timedelta,
    expires: datetime | None,
    as_json: bool,
    database_url: str | None,
) -> None:
    """Replace a key by a new one of the same name, permissions and quota, and print it.

    \b
    prompt-serve keys rotate ci --overlap 24h
    """
    from prompt_serve.service.storage.api_keys import Keys
    from prompt_serve.service.storage.audit import acting_as

    with open_database(database_url) as database, acting_as(_user()):
        token, key = Keys(database).rotate(name, overlap, expires)
    _print_new(token, key, as_json)


def _print_new(token: str, key: "StoredKey", as_json: bool) -> None:
    if as_json:
        print_document({**_described(key), "key": token})
    else:
        click.echo(token)
    expiry_text = (
        "never expires" if key.expires is None else f"expires {to_the_second(key.expires)}"
    )
    click.echo(
        f"Created key {key.name} ({key.id}), role {key.role}, {expiry_text}. It cannot be shown "
        f"again.",
        err=True,
    )


@keys.command("list")
@json_lines_option("key")
@database_option
def list_keys(as_json: bool, database_url: str | None) -> None:
    """List all keys with the time of their last use. Includes expired and revoked keys.

    \b
    prompt-serve keys list
    """
    from prompt_serve.service.storage.api_keys import Keys

    with open_database(database_url) as database:
        found = Keys(database).all()
    if as_json:
        print_json_lines(map(_described, found))
        return
    now = datetime.now(UTC)
    print_table(
        ("name", "id", "role", "tasks", "state", "created", "expires", "used"),
        (
            (
                key.name,
                key.id,
                key.role if key.role != "custom" else ",".join(sorted(key.permissions.actions)),
                ",".join([*key.permissions.names, *key.permissions.tags]) or "all",
                key.state(now),
                to_the_second(key.created),
                to_the_second(key.expires or "never"),
                to_the_second(key.last_used or "never"),
            )
            for key in found
        ),
        empty="There are no keys. Create one: prompt-serve keys create NAME --role admin",
    )


@keys.command()
@json_lines_option("key")
@database_option
def usage(as_json: bool, database_url: str | None) -> None:
    """Print requests, images, tasks and stored bytes of each valid key, with its quota.

    \b
    prompt-serve keys usage
    """
    from prompt_serve.service.storage.api_keys import Keys

    now = datetime.now(UTC)
    with open_database(database_url) as database:
        found = [key for key in Keys(database).all() if key.state(now) == "valid"]
        rows = [(key, _stored_of(key, database)) for key in found]
    if as_json:
        print_json_lines(
            {
                **_described(key),
                "requests": key.requests,
                "images": key.images,
                "stored_tasks": stored.tasks,
                "stored_bytes": stored.size_bytes,
            }
            for key, stored in rows
        )
        return
    print_table(
        ("name", "id", "requests", "images", "tasks", "bytes", "used", "quota"),
        (
            (
                key.name,
                key.id,
                f"{key.requests:,}",
                f"{key.images:,}",
                f"{stored.tasks:,}",
                f"{stored.size_bytes:,}",
                to_the_second(key.last_used or "never"),
                ", ".join(f"{limit} {value:g}" for limit, value in _limits(key).items()) or "none",
            )
            for key, stored in rows
        ),
        empty="There are no keys. Create one: prompt-serve keys create NAME --role admin",
    )


@keys.command()
@click.argument("name_or_id")
@json_lines_option("revoked key")
@database_option
def revoke(name_or_id: str, as_json: bool, database_url: str | None) -> None:
    """Revoke a key by its name or id. Running services reject it within a second.

    \b
    prompt-serve keys revoke ci
    """
    from prompt_serve.service.storage.api_keys import Keys
    from prompt_serve.service.storage.audit import acting_as

    with open_database(database_url) as database, acting_as(_user()):
        revoked = Keys(database).revoke(name_or_id)
    if as_json:
        print_json_lines(map(_described, revoked))
        return
    for key in revoked:
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
@json_lines_option("change")
@database_option
def audit(limit: int, subject: str | None, as_json: bool, database_url: str | None) -> None:
    """Print the audit log, newest change first.

    \b
    prompt-serve keys audit --subject pets
    """
    from prompt_serve.service.storage.audit import AuditLog

    with open_database(database_url) as database:
        entries = AuditLog(database).page(limit=limit, subject=subject).entries
    if as_json:
        print_json_lines(entry.model_dump() for entry in entries)
        return
    print_table(
        ("time", "actor", "action", "subject", "before", "after"),
        (
            (
                to_the_second(entry.time),
                entry.actor,
                entry.action,
                entry.subject,
                (entry.before or "-")[:12],
                (entry.after or "-")[:12],
            )
            for entry in entries
        ),
        empty=f"No changes of {subject!r}; without --subject, all changes are listed."
        if subject
        else "No changes yet: every upload, edit and key will be listed here.",
    )


def _described(key: "StoredKey") -> dict[str, Any]:
    """Return a key as JSON types, without the hash of its secret."""
    return {
        "name": key.name,
        "id": key.id,
        "role": key.role,
        "actions": sorted(key.permissions.actions),
        "tasks": list(key.permissions.names),
        "tags": list(key.permissions.tags),
        "quota": _limits(key),
        "state": key.state(datetime.now(UTC)),
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "last_used": key.last_used,
    }


def _limits(key: "StoredKey") -> dict[str, float]:
    return {limit: value for limit, value in vars(key.quota).items() if value is not None}


def _stored_of(key: "StoredKey", database: "Database") -> "Stored":
    """Return what the tasks take that a key may see."""
    from prompt_serve.service.request_context import Actor, RequestContext, request_scope
    from prompt_serve.service.storage.stored_quota import read_stored

    actor = Actor(key.name, key.id, key.permissions)
    with request_scope(RequestContext(actor=actor)):
        return database.read(read_stored)


def _user() -> str:
    """Return the current user as recorded in the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError, ImportError):  # a user without a name, as in some containers
        return "cli"
