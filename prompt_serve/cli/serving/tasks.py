"""``prompt-serve tasks``: list, upload and edit the tasks of a running service."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from prompt_serve.cli.facts import (
    json_lines_option,
    json_option,
    print_document,
    print_json_lines,
    print_table,
    to_the_second,
)
from prompt_serve.cli.output_file import OutputFile, written
from prompt_serve.cli.serving.options import Service, service_options
from prompt_serve.cli.serving.task_details import print_task
from prompt_serve.cli.user_path import DASH, UserPath, read_input
from prompt_serve.errors import counted
from prompt_serve.schemas import DEFAULT_TEMPLATE, BulkReport, TaskInfo

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def tasks() -> None:
    """List, upload and edit the tasks of a running service.

    \b
    prompt-serve tasks upload pets.safetensors
    prompt-serve tasks list
    """


def new_tags_option(command: Command) -> Command:
    """Add ``--tag``, for commands that make a task."""
    return click.option(
        "--tag",
        "tags",
        multiple=True,
        help="Tag to add to the task; the tags of a replaced task stay. Repeatable.",
    )(command)


@tasks.command("list")
@json_lines_option("task")
@click.option(
    "--search",
    default="",
    help="Only tasks with this text in the name, a class name or the method.",
)
@click.option("--tag", "tags", multiple=True, help="Only tasks with this tag. Repeatable.")
@service_options
def list_tasks(as_json: bool, search: str, tags: tuple[str, ...], service: Service) -> None:
    """List tasks, sorted by name.

    \b
    prompt-serve tasks list --tag prod --search dog
    """
    with service.client() as client:
        found = client.tasks(search=search, tags=tags)
        if as_json:
            print_json_lines(task.model_dump() for task in found)
            return
        print_table(
            ("name", "version", "method", "classes", "updated", "tags"),
            (
                (
                    task.name,
                    task.version[:12],
                    task.method,
                    f"{task.n_classes:,}",
                    to_the_second(task.updated),
                    " ".join([*task.tags, *(["(pinned)"] if task.pinned else [])]),
                )
                for task in found
            ),
            right={"classes"},
            empty="No matching tasks; without --search and --tag, all tasks are listed."
            if search or tags
            else "The service has no tasks. Upload one: prompt-serve tasks upload FILE",
        )


@tasks.command()
@click.argument("name")
@json_option
@service_options
def show(name: str, as_json: bool, service: Service) -> None:
    """Show the details of a task, or of one version of it (NAME@VERSION).

    \b
    prompt-serve tasks show pets
    """
    with service.client() as client:
        task = client.task(name)
    if as_json:
        print_document(task.model_dump())
    else:
        print_task(task)


@tasks.command()
@click.argument("file", type=UserPath(dash=True))
@click.option("--name", help="Name of the task.  [default: the file's name without suffix]")
@new_tags_option
@click.option("--expected", metavar="VERSION", help="Fail if the task is not at this version.")
@click.option("--new", is_flag=True, help="Fail if a task of that name exists.")
@click.option(
    "--namespace", default="", help="For a folder or zip: namespace of all tasks, as in team/pets."
)
@click.option(
    "--each",
    is_flag=True,
    help="For a folder or zip: upload the files that can be served and report the others.",
)
@json_option
@service_options
def upload(
    file: Path,
    name: str | None,
    tags: tuple[str, ...],
    expected: str | None,
    new: bool,
    namespace: str,
    each: bool,
    as_json: bool,
    service: Service,
) -> None:
    """Upload a prompt file and serve it as a task. An existing task of that name is replaced.

    FILE may be - for standard input, with --name. It may also be a folder or zip of prompt files.
    Tasks are then named after the files, and nothing is uploaded if one of the files cannot be
    served (see --each).

    \b
    prompt-serve tasks upload pets.safetensors --name pets-v2 --tag prod
    prompt-serve tasks upload prompts/
    """
    from prompt_serve.prompts.prompt_file import from_bytes, read_prompt_file

    if file == DASH and name is None:
        raise click.UsageError("Standard input has no file name; name the task with --name.")
    with service.client() as client:
        if file.is_dir() or file.suffix == ".zip":
            if name is not None or expected is not None or new:
                raise click.UsageError("--name, --expected and --new need a single prompt file.")
            report = client.upload_many(file, atomic=not each, tags=tags, namespace=namespace)
            _note_other_names(file)
            _print_report(report, as_json=as_json)
            return
        if namespace:
            raise click.UsageError("--namespace is for a folder or zip; use --name team/pets.")
        source = read_input(file) if file == DASH else file
        task = client.upload(source, name, expected=expected, new=new, tags=tags)
    _print_served(task, as_json=as_json)
    prompt = from_bytes(source) if isinstance(source, bytes) else read_prompt_file(source)
    if prompt.name not in ("", task.name):
        click.echo(
            f"Note: the file itself says {prompt.name!r}; upload it under that name with --name.",
            err=True,
        )


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
@new_tags_option
@json_option
@service_options
def create(
    name: str,
    class_names: tuple[str, ...],
    templates: tuple[str, ...],
    tags: tuple[str, ...],
    as_json: bool,
    service: Service,
) -> None:
    """Create a zero-shot task from class names, without training.

    \b
    prompt-serve tasks create pets cat dog "guinea pig"
    """
    with service.client() as client:
        task = client.create_zero_shot(name, class_names, templates, tags=tags)
    _print_served(task, as_json=as_json)


@tasks.command()
@click.argument("name")
@click.option(
    "-o",
    "--out",
    type=OutputFile(dash=True),
    help="File to write, or - for standard output.  [default: NAME.safetensors]",
)
@service_options
def download(name: str, out: Path | None, service: Service) -> None:
    """Save the prompt file of a task.

    \b
    prompt-serve tasks download pets -o backup/pets.safetensors
    prompt-serve tasks download pets -o - | prompt-serve inspect -
    """
    target = out or OutputFile().convert(f"{name.rpartition('/')[2]}.safetensors", None, None)
    with service.client() as client:
        data = client.download(name)
    with written(target) as file:
        file.write(data)


@tasks.command()
@click.argument("name")
@service_options
def delete(name: str, service: Service) -> None:
    """Delete a task; rollback restores it.

    \b
    prompt-serve tasks delete pets
    """
    with service.client() as client:
        client.delete(name)
    click.echo(f"{name} is deleted.")


@tasks.command()
@click.argument("name")
@json_lines_option("change")
@service_options
def history(name: str, as_json: bool, service: Service) -> None:
    """List the changes of a task, newest first.

    \b
    prompt-serve tasks history pets
    """
    with service.client() as client:
        changes = client.history(name)
        if as_json:
            print_json_lines(change.model_dump() for change in changes)
            return
        print_table(
            ("time", "change", "version", "by", ""),
            (
                (
                    to_the_second(change.at),
                    change.what,
                    (change.version or "-")[:12],
                    change.who,
                    "" if change.kept or change.version is None else "(file removed)",
                )
                for change in changes
            ),
            empty=f"Task {name!r} has no history; its next change will be listed here.",
        )


@tasks.command()
@click.argument("name")
@click.option(
    "--to",
    "version",
    metavar="VERSION",
    help="Version from its history, or at least its first 8 digits.  [default: the previous one]",
)
@json_option
@service_options
def rollback(name: str, version: str | None, as_json: bool, service: Service) -> None:
    """Serve an earlier version of a task again. Also restores a deleted task.

    \b
    prompt-serve tasks rollback pets --to 74c8bf69
    """
    with service.client() as client:
        _print_served(client.rollback(name, version), as_json=as_json)


@tasks.command()
@click.argument("name")
@click.argument("of")
@json_option
@service_options
def alias(name: str, of: str, as_json: bool, service: Service) -> None:
    """Serve a task under another name.

    NAME points at the current version of task OF, or at OF@VERSION. Later changes of OF do not
    change it.

    \b
    prompt-serve tasks alias pets-prod pets@74c8bf69
    """
    with service.client() as client:
        _print_served(client.alias(name, of), as_json=as_json)


@tasks.command()
@click.argument("name")
@click.argument("tags", nargs=-1)
@click.option("--add", multiple=True, metavar="TAG", help="Tag to add. Repeatable.")
@click.option("--remove", multiple=True, metavar="TAG", help="Tag to remove. Repeatable.")
@click.option("--clear", is_flag=True, help="Remove all tags.")
@json_option
@service_options
def tag(
    name: str,
    tags: tuple[str, ...],
    add: tuple[str, ...],
    remove: tuple[str, ...],
    clear: bool,
    as_json: bool,
    service: Service,
) -> None:
    """Add and remove tags of a task, or replace all of them by TAGS.

    Without any, the tags are shown.

    \b
    prompt-serve tasks tag pets --add prod --remove test
    prompt-serve tasks tag pets prod eu
    """
    if bool(tags) + bool(add or remove) + clear > 1:
        raise click.UsageError(
            "TAGS replace all tags, --add and --remove change some, --clear removes all; use one "
            "of the three."
        )
    with service.client() as client:
        if tags or clear:
            task = client.set_tags(name, tags)
        elif add or remove:
            task = client.edit_tags(name, add=add, remove=remove)
        else:
            task = client.task(name)
    if as_json:
        print_document(task.model_dump())
    else:
        click.echo(f"{task.name}: {' '.join(task.tags) or 'no tags'}")


@tasks.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="Unpin the task.")
@json_option
@service_options
def pin(name: str, off: bool, as_json: bool, service: Service) -> None:
    """Keep a task in the service's memory, even if it is rarely used.

    \b
    prompt-serve tasks pin pets
    """
    with service.client() as client:
        task = client.set_pinned(name, not off)
    if as_json:
        print_document(task.model_dump())
    else:
        click.echo(f"{name} is {'unpinned' if off else 'pinned'}.")


def _print_served(task: TaskInfo, *, as_json: bool) -> None:
    if as_json:
        print_document(task.model_dump())
    else:
        classes = counted(task.n_classes, "class")
        click.echo(f"{task.name} is served: {classes}, version {task.version[:12]}.")
    for note in task.notes:
        click.echo(f"Note: {note}", err=True)


def _note_other_names(source: Path) -> None:
    from prompt_serve.client.uploads import other_names_inside

    names = other_names_inside(source)
    if names:
        first, name = next(iter(names.items()))
        holds = "holds another name" if len(names) == 1 else "hold other names, for example"
        click.echo(
            f"Note: {counted(len(names), 'file')} {holds} ({first}: {name!r}); tasks are named "
            f"after the files.",
            err=True,
        )


def _print_report(report: BulkReport, *, as_json: bool) -> None:
    for item in report.items:
        if item.error is not None:
            click.echo(f"{item.name} is not served: {item.error.detail}", err=True)
    if as_json:
        print_document(report.model_dump(exclude_none=True))
    else:
        verb = "is" if report.served == 1 else "are"
        click.echo(f"{counted(report.served, 'task')} {verb} served.")
    if report.failed:
        raise click.exceptions.Exit(1)
