"""``prompt-serve tasks``: list, upload and edit the tasks of a running service."""

import json
from pathlib import Path

import click

from prompt_serve.cli.output_file import OutputFile
from prompt_serve.cli.plurals import counted
from prompt_serve.cli.serving.options import service_options
from prompt_serve.cli.user_path import UserPath
from prompt_serve.files import atomic_file
from prompt_serve.schemas import DEFAULT_TEMPLATE, BulkReport, TaskInfo


@click.group()
def tasks() -> None:
    """List, upload and edit the tasks of a running service.

    \b
    prompt-serve tasks upload pets.safetensors
    prompt-serve tasks list
    """


@tasks.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per task.")
@click.option(
    "--search",
    default="",
    help="Only tasks with this text in the name, a class name or the method.",
)
@click.option("--tag", "tags", multiple=True, help="Only tasks with this tag. Repeatable.")
@service_options
def list_tasks(
    as_json: bool, search: str, tags: tuple[str, ...], url: str, timeout_s: float
) -> None:
    """List tasks, sorted by name.

    \b
    prompt-serve tasks list --tag prod --search dog
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        for task in client.tasks(search=search, tags=tags):
            columns = f"{task.name:<24} {task.version[:12]}  {task.method:<12}"
            marks = " ".join([*task.tags, *(["(pinned)"] if task.pinned else [])])
            line = f"{columns} {task.n_classes:>7,} classes  {marks}".rstrip()
            click.echo(task.model_dump_json() if as_json else line)


@tasks.command()
@click.argument("name")
@service_options
def show(name: str, url: str, timeout_s: float) -> None:
    """Print the details of a task as JSON.

    \b
    prompt-serve tasks show pets
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        click.echo(json.dumps(client.task(name).model_dump(), indent=2, ensure_ascii=False))


@tasks.command()
@click.argument("file", type=UserPath())
@click.option("--name", help="Name of the task.  [default: the file's name without suffix]")
@click.option("--expected", metavar="VERSION", help="Fail if the task is not at this version.")
@click.option("--new", is_flag=True, help="Fail if a task of that name exists.")
@click.option(
    "--each",
    is_flag=True,
    help="For a folder or zip: upload the files that can be served and report the others.",
)
@service_options
def upload(
    file: Path,
    name: str | None,
    expected: str | None,
    new: bool,
    each: bool,
    url: str,
    timeout_s: float,
) -> None:
    """Upload a prompt file and serve it as a task. An existing task of that name is replaced.

    FILE may also be a folder or zip of prompt files. Tasks are then named after the files, and
    nothing is uploaded if one of the files cannot be served (see --each).

    \b
    prompt-serve tasks upload pets.safetensors --name pets-v2
    prompt-serve tasks upload prompts/
    """
    from prompt_serve.client import Client
    from prompt_serve.prompts.prompt_file import read_prompt_file

    with Client(url, timeout_s=timeout_s) as client:
        if file.is_dir() or file.suffix == ".zip":
            if name is not None or expected is not None or new:
                raise click.UsageError("--name, --expected and --new need a single prompt file.")
            _print_report(client.upload_many(file, atomic=not each))
            return
        task = client.upload(file, name, expected=expected, new=new)
    _print_served(task)
    held = read_prompt_file(file).name
    if held not in ("", task.name):
        click.echo(f"Note: the file itself says {held!r}; upload it under that name with --name.")


@tasks.command()
@click.argument("name")
@click.argument("class_names", nargs=-1, required=True, metavar="CLASS...")
@click.option(
    "--template",
    "templates",
    multiple=True,
    default=[DEFAULT_TEMPLATE],
    show_default=True,
    help="Sentence with {} for the class name. Repeatable: text features are averaged.",
)
@service_options
def create(
    name: str,
    class_names: tuple[str, ...],
    templates: tuple[str, ...],
    url: str,
    timeout_s: float,
) -> None:
    """Create a zero-shot task from class names, without training.

    \b
    prompt-serve tasks create pets cat dog "guinea pig"
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        task = client.create_zero_shot(name, class_names, templates)
    _print_served(task)


@tasks.command()
@click.argument("name")
@click.option(
    "-o",
    "--out",
    type=OutputFile(),
    help="File to write.  [default: NAME.safetensors]",
)
@service_options
def download(name: str, out: Path | None, url: str, timeout_s: float) -> None:
    """Save the prompt file of a task.

    \b
    prompt-serve tasks download pets -o backup/pets.safetensors
    """
    from prompt_serve.client import Client

    target = out or OutputFile().convert(f"{name}.safetensors", None, None)
    with Client(url, timeout_s=timeout_s) as client:
        data = client.download(name)
    with atomic_file(target) as temporary:
        temporary.write_bytes(data)
    click.echo(f"{target}: {len(data):,} bytes.")


@tasks.command()
@click.argument("name")
@service_options
def delete(name: str, url: str, timeout_s: float) -> None:
    """Delete a task; rollback restores it.

    \b
    prompt-serve tasks delete pets
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        client.delete(name)
    click.echo(f"{name} is deleted.")


@tasks.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per change.")
@service_options
def history(name: str, as_json: bool, url: str, timeout_s: float) -> None:
    """List the changes of a task, newest first.

    \b
    prompt-serve tasks history pets
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        for change in client.history(name):
            version = (change.version or "-")[:12]
            gone = "" if change.kept or change.version is None else "  (file removed)"
            line = f"{change.at}  {change.what:<8}  {version:<12}  {change.who}{gone}"
            click.echo(change.model_dump_json() if as_json else line)


@tasks.command()
@click.argument("name")
@click.option(
    "--to",
    "version",
    metavar="VERSION",
    help="Version from its history, or at least its first 8 digits.  [default: the previous one]",
)
@service_options
def rollback(name: str, version: str | None, url: str, timeout_s: float) -> None:
    """Serve an earlier version of a task again. Also restores a deleted task.

    \b
    prompt-serve tasks rollback pets --to 74c8bf69
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        _print_served(client.rollback(name, version))


@tasks.command()
@click.argument("name")
@click.argument("of")
@service_options
def alias(name: str, of: str, url: str, timeout_s: float) -> None:
    """Serve a task under another name.

    NAME points at the current version of task OF, or at OF@VERSION. Later changes of OF do not
    change it.

    \b
    prompt-serve tasks alias pets-prod pets@74c8bf69
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        _print_served(client.alias(name, of))


@tasks.command()
@click.argument("name")
@click.argument("tags", nargs=-1)
@service_options
def tag(name: str, tags: tuple[str, ...], url: str, timeout_s: float) -> None:
    """Replace the tags of a task. Without TAGS, all tags are removed.

    \b
    prompt-serve tasks tag pets prod eu
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        task = client.set_tags(name, tags)
    click.echo(f"{task.name}: {' '.join(task.tags) or 'no tags'}")


@tasks.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="Unpin the task.")
@service_options
def pin(name: str, off: bool, url: str, timeout_s: float) -> None:
    """Keep a task in the service's memory, even if it is rarely used.

    \b
    prompt-serve tasks pin pets
    """
    from prompt_serve.client import Client

    with Client(url, timeout_s=timeout_s) as client:
        client.set_pinned(name, not off)
    click.echo(f"{name} is {'unpinned' if off else 'pinned'}.")


def _print_served(task: TaskInfo) -> None:
    classes = f"{task.n_classes:,} class{'' if task.n_classes == 1 else 'es'}"
    click.echo(f"{task.name} is served: {classes}, version {task.version[:12]}.")
    for note in task.notes:
        click.echo(f"Note: {note}", err=True)


def _print_report(report: BulkReport) -> None:
    for item in report.items:
        if item.error is not None:
            click.echo(f"{item.name} is not served: {item.error.detail}", err=True)
    click.echo(f"{counted(report.served, 'task')} {'is' if report.served == 1 else 'are'} served.")
    if report.failed:
        raise SystemExit(1)
