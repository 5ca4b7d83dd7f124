"""Completion of names in bash, zsh and fish; click completes commands, options and file names.

Switched on by a line in the shell's start file, for bash::

    eval "$(_PROMPT_SERVE_COMPLETE=bash_source prompt-serve)"

Names of tasks and tags come from the service, which has half a second to answer. An error means
that nothing is completed.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from prompt_serve.schemas import TaskSummary

VARIABLE = "_PROMPT_SERVE_COMPLETE"  # set by the shells' functions
TIMEOUT_S = 0.5
MOST_TASKS = 1000

Names = Callable[[click.Context, str], Iterable[str]]  # context, start of the name


class Completed(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Text that is completed by names.

    Args:
        names: returns names; those that do not fit are left out.
        or_file: file names are completed where no name fits.
    """

    name = "text"

    def __init__(self, names: Names, *, or_file: bool = False) -> None:
        self._names, self._or_file = names, or_file

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return click.STRING.convert(value, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found = [name for name in self._names(ctx, incomplete) if name.startswith(incomplete)]
        if not found and self._or_file:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in found]


def add_completion(path: str, command: click.Command) -> None:
    """Complete the values of options and arguments of a command, ``path`` being its name."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            kind = next((OPTIONS[flag] for flag in parameter.opts if flag in OPTIONS), None)
        else:
            kind = ARGUMENTS.get(f"{path} {parameter.name}")
        if kind is not None:
            parameter.type = kind


def _task_names(ctx: click.Context, start: str) -> Iterator[str]:
    return (task.name for task in _tasks(ctx, start))


def _tags(ctx: click.Context, start: str) -> Iterable[str]:
    return dict.fromkeys(tag for task in _tasks(ctx, "") for tag in task.tags)


def _tasks(ctx: click.Context, search: str) -> "Iterator[TaskSummary]":
    from prompt_serve.client import Client
    from prompt_serve.client.async_client import DEFAULT_URL

    url = ctx.params.get("url") or os.environ.get("PROMPT_SERVE_URL") or DEFAULT_URL
    key = ctx.params.get("api_key")
    with Client(url, timeout_s=TIMEOUT_S, retries=0, api_key=key) as client:
        yield from islice(client.tasks(search=search), MOST_TASKS)


def _methods(ctx: click.Context, start: str) -> Iterable[str]:
    from prompt_serve.training.methods import METHODS

    return METHODS.names()


def _method_or_auto(ctx: click.Context, start: str) -> Iterable[str]:
    return ["auto", *_methods(ctx, start)]


def _methods_of_a_list(ctx: click.Context, start: str) -> Iterable[str]:
    """Return lists that end with each method: ``coop,`` gives ``coop,dip`` and so on."""
    before, comma, _ = start.rpartition(",")
    sets = () if comma else ("core", "text", "image")
    return (f"{before}{comma}{name}" for name in (*sets, *_methods(ctx, start)))


def _backbones(ctx: click.Context, start: str) -> Iterable[str]:
    from prompt_serve.bundle import SHIPPED

    return SHIPPED


def _datasets(ctx: click.Context, start: str) -> Iterable[str]:
    from prompt_serve.research.datasets.spec import imagenet_domains, paper_datasets

    return [*paper_datasets(), *imagenet_domains()]


_TASK, _BACKBONE = Completed(_task_names), Completed(_backbones, or_file=True)
_ONE_TASK = ("show", "download", "delete", "history", "rollback", "tag", "pin")

OPTIONS = {
    "--task": _TASK,
    "--tag": Completed(_tags),
    "--method": Completed(_method_or_auto),
    "--methods": Completed(_methods_of_a_list),
    "--backbone": _BACKBONE,
}
ARGUMENTS = {
    **{f"tasks {command} name": _TASK for command in _ONE_TASK},
    "tasks alias of": _TASK,
    "methods name": Completed(_methods),
    "export backbone": _BACKBONE,
    "data check name": Completed(_datasets),
}
