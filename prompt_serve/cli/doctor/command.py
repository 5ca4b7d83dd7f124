"""``prompt-serve doctor``: what is installed, where it runs, and what is wrong."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from prompt_serve.cli.facts import json_option
from prompt_serve.cli.serving.options import Service, service_options

if TYPE_CHECKING:
    from prompt_serve.cli.doctor.findings import Checked
    from prompt_serve.client import Client


@click.command()
@json_option
@service_options
@click.pass_context
def doctor(context: click.Context, as_json: bool, service: Service) -> None:
    """Show versions, machine, bundles, database and service, and say what is wrong.

    Works with any extras installed, and whether a service runs or not. Nothing is changed. The exit
    code is 1 if something is wrong; notes are not.

    \b
    prompt-serve doctor
    prompt-serve doctor --url http://gpu-box:3000 --json
    """
    from prompt_serve.client import Client

    def client(key: str | None) -> Client:
        own = service.api_key if key is None else key
        return Client(service.url, timeout_s=service.timeout_s, api_key=own, retries=0)

    named = context.get_parameter_source("url") != ParameterSource.DEFAULT
    sections = dict(_sections(service.url, client, named=named))
    problems = [line for checked in sections.values() for line in checked.problems]
    notes = [line for checked in sections.values() for line in checked.notes]
    facts = {name: checked.facts for name, checked in sections.items()}
    if as_json:
        document = {"ok": not problems, "problems": problems, "notes": notes, **facts}
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        for name, section in facts.items():
            click.echo("\n".join(_lines(name, section)))
        for line in notes:
            click.echo(f"Note: {line}")
        for line in problems:
            click.echo(f"Problem: {line}")
        if not problems:
            click.echo("Nothing is wrong.")
    if problems:
        raise click.exceptions.Exit(1)


def _sections(
    url: str, client: "Callable[[str | None], Client]", *, named: bool
) -> "Iterator[tuple[str, Checked]]":
    from prompt_serve.cli.doctor.findings import Checked
    from prompt_serve.cli.doctor.installation import check_installation
    from prompt_serve.cli.doctor.machine import check_machine
    from prompt_serve.cli.doctor.service import check_service

    yield "installation", check_installation()
    yield "machine", check_machine()
    try:
        yield from _local_service()
    except ImportError as error:
        note = f"The local service was not checked: {error.name} is not installed."
        yield "settings", Checked(facts={}, notes=[note])
    yield "service", check_service(url, client, named=named)


def _local_service() -> "Iterator[tuple[str, Checked]]":
    from prompt_serve.cli.doctor import registry

    checked, settings = registry.check_settings()
    yield "settings", checked
    if settings is not None:
        yield "home", registry.check_home(settings)
        yield "bundles", registry.check_bundles(settings)
        yield "device", registry.check_device(settings)
        yield "database", registry.check_database(settings)


def _lines(title: str, facts: Mapping[str, Any]) -> Iterator[str]:
    yield title
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _table(name, value)
        elif value and isinstance(value, list) and isinstance(value[0], Mapping):
            for item in value:
                yield from _table(name.removesuffix("s"), item)
        else:
            yield f"  {_label(name):<20} {_shown(name, value)}"
    yield ""


def _table(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    shown = {name: value for name, value in values.items() if value not in (None, [])}
    yield f"  {title}" if shown else f"  {title:<20} none"
    for name, value in shown.items():
        yield f"    {name:<18} {_shown(name, value)}"


def _label(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _shown(name: str, value: object) -> str:
    if value is None or value in ([], ""):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int) and name.endswith("_bytes"):
        return f"{value / 2**30:.1f} GiB"
    return f"{value:,}" if isinstance(value, int) else str(value)
