"""``prompt-serve tasks``: list and change the tasks of a running service."""

import json
import os
from pathlib import Path

import click

from prompt_serve.cli.options import service_options
from prompt_serve.schemas import DEFAULT_TEMPLATE


@click.group()
def tasks() -> None:
    """List and change the tasks of a running service.

    \b
    prompt-serve tasks upload pets.safetensors
    prompt-serve tasks list
    """


@tasks.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a task.")
@service_options
def list_tasks(as_json: bool, url: str, timeout_s: float) -> None:
    """List all tasks in the order of their names.

    \b
    prompt-serve tasks list --url http://gpu-box:3000
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        for task in client.tasks():
            columns = f"{task.name:<24} {task.version[:12]}  {task.method:<12}"
            line = f"{columns} {task.n_classes:>7,} classes"
            click.echo(task.model_dump_json() if as_json else line)


@tasks.command()
@click.argument("name")
@service_options
def show(name: str, url: str, timeout_s: float) -> None:
    """Print all there is to know about a task, as JSON.

    \b
    prompt-serve tasks show pets
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        click.echo(json.dumps(client.task(name).model_dump(), indent=2, ensure_ascii=False))


@tasks.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--name", help="Name of the task.  [default: the prompt's own, or the file's without suffix]"
)
@service_options
def upload(file: Path, name: str | None, url: str, timeout_s: float) -> None:
    """Serve a prompt file as a task; a task of that name is replaced.

    \b
    prompt-serve tasks upload pets.safetensors --name pets-v2
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        task = client.upload(file, name)
    click.echo(f"{task.name} is served: {task.n_classes:,} classes, version {task.version[:12]}.")


@tasks.command()
@click.argument("name")
@click.argument("class_names", nargs=-1, required=True, metavar="CLASS...")
@click.option(
    "--template",
    "templates",
    multiple=True,
    default=[DEFAULT_TEMPLATE],
    show_default=True,
    help="Sentence with {} for the class name; give several and they are averaged.",
)
@service_options
def create(
    name: str,
    class_names: tuple[str, ...],
    templates: tuple[str, ...],
    url: str,
    timeout_s: float,
) -> None:
    """Serve a zero-shot task made of class names alone; nothing is learned.

    \b
    prompt-serve tasks create pets cat dog "guinea pig"
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        task = client.create_zero_shot(name, class_names, templates)
    click.echo(f"{task.name} is served: {task.n_classes:,} classes, version {task.version[:12]}.")


@tasks.command()
@click.argument("name")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="File to write.  [default: NAME.safetensors]",
)
@service_options
def download(name: str, out: Path | None, url: str, timeout_s: float) -> None:
    """Save the prompt file of a task.

    \b
    prompt-serve tasks download pets -o backup/pets.safetensors
    """
    from prompt_serve.client import Client

    target = out or Path(f"{name}.safetensors")
    with Client(url, timeout_s=timeout_s) as client:
        data = client.download(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(target)
    click.echo(f"{target}: {len(data):,} bytes.")


@tasks.command()
@click.argument("name")
@service_options
def delete(name: str, url: str, timeout_s: float) -> None:
    """Stop serving a task.

    \b
    prompt-serve tasks delete pets
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        client.delete(name)
    click.echo(f"{name} is no longer served.")
