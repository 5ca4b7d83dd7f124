"""Options of commands that look at a dataset with a backbone, in this process."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from prompt_serve.training.data.features import FeatureCache

Command = TypeVar("Command", bound=Callable[..., Any])


def pairs(wanted: str) -> Callable[..., dict[str, str]]:
    """A click callback that reads repeated options of the form A=B, both sides given.

    Args:
        wanted: the form with an example, for who writes something else.
    """

    def read(
        context: click.Context, option: click.Parameter, values: tuple[str, ...]
    ) -> dict[str, str]:
        named = {}
        for value in values:
            name, equals, other = value.partition("=")
            if not (name and equals and other):
                raise click.BadParameter(f"{value!r} is not {wanted}.")
            named[name] = other
        return named

    return read


def image_options(command: Command) -> Command:
    """How classes are called, where features are kept, and where the towers run."""
    for option in (
        click.option(
            "--class-name", "renames", multiple=True, metavar="OLD=NEW",
            callback=pairs("OLD=NEW, as in roses=rose"),
            help="Call a class otherwise than its folder, as in roses=rose. May be repeated.",
        ),
        click.option(
            "--images", type=click.Path(path_type=Path),
            help="Folder that the paths in a split_zhou_*.json start from. "
            "[default: found beside it]",
        ),
        tower_options,
    ):  # fmt: skip
        command = option(command)
    return command


def tower_options(command: Command) -> Command:
    """Where features are kept, and where the towers run."""
    for option in (
        click.option(
            "--cache", "cache_folder", type=click.Path(path_type=Path),
            help="Folder that keeps image features. [default: features in $PROMPT_SERVE_CACHE, "
            "or ~/.cache/prompt-serve/features]",
        ),
        click.option("--no-cache", is_flag=True, help="Keep no image features."),
        click.option(
            "--device", default="cpu", show_default=True,
            help="Where the towers run: cpu, cuda, cuda:1, or auto for cuda if there is one.",
        ),
        click.option(
            "--workers", type=click.IntRange(min=1), default=4, show_default=True,
            help="Threads that decode images.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def json_option(command: Command) -> Command:
    """Whether the answer is for a program."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document, nothing else.")(
        command
    )


def feature_cache(options: Mapping[str, Any]) -> "FeatureCache | None":
    """The cache that the options ask for."""
    from prompt_serve.training.data.features import FeatureCache

    return None if options["no_cache"] else FeatureCache(options["cache_folder"])


def device_of(name: str) -> str:
    """A device that is there.

    Raises:
        ConfigInvalid: CUDA was asked for and there is none.
    """
    import torch

    from prompt_serve.errors import ConfigInvalid

    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.startswith("cuda") and not available:
        raise ConfigInvalid(
            "--device asks for CUDA, but torch finds none. Leave it out for the CPU."
        )
    return name
