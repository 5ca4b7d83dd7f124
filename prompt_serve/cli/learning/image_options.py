"""Options of commands that run a backbone on a dataset."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prompt_serve.cli.user_path import UserPath

if TYPE_CHECKING:
    from prompt_serve.training.data.dataset import Split
    from prompt_serve.training.data.features import FeatureCache
    from prompt_serve.training.data.tables import ColumnNames

Command = TypeVar("Command", bound=Callable[..., Any])


def pairs(expected: str) -> Callable[..., dict[str, str]]:
    """Return a click callback that parses repeated options of the form A=B.

    Args:
        expected: the form with an example, for the error.
    """

    def read(
        context: click.Context, option: click.Parameter, values: tuple[str, ...]
    ) -> dict[str, str]:
        parsed = {}
        for value in values:
            left, equals, right = value.partition("=")
            if not (left and equals and right):
                raise click.BadParameter(f"{value!r} is not {expected}.")
            parsed[left] = right
        return parsed

    return read


def image_options(command: Command) -> Command:
    """Add options for class names, columns, bad images, feature cache and device."""
    for option in (
        click.option(
            "--class-name", "renames", multiple=True, metavar="OLD=NEW",
            callback=pairs("OLD=NEW, as in roses=rose"),
            help="Rename a class, for example roses=rose. May be repeated.",
        ),
        click.option(
            "--images", type=UserPath(),
            help="Folder that the paths in a split_zhou_*.json are relative to. "
            "[default: found beside it]",
        ),
        click.option(
            "--image-column", metavar="NAME",
            help="Column of images in a table: paths, URLs or bytes. [default: image or bytes in "
            "Parquet, else path or file_name]",
        ),
        click.option(
            "--label-column", metavar="NAME",
            help="Column of labels in a table, or field in the .json files of a WebDataset. "
            "[default: label]",
        ),
        click.option(
            "--on-bad-image", type=click.Choice(["error", "skip"]), default="error",
            show_default=True,
            help="If an image cannot be decoded: stop with a list of all of them, or skip and "
            "list them.",
        ),
        tower_options,
    ):  # fmt: skip
        command = option(command)
    return command


def tower_options(command: Command) -> Command:
    """Add options for feature cache, device and worker threads."""
    for option in (
        click.option(
            "--cache", "cache_folder", type=UserPath(),
            help="Folder of cached image features. [default: features in $PROMPT_SERVE_CACHE, "
            "or ~/.cache/prompt-serve/features]",
        ),
        click.option("--no-cache", is_flag=True, help="Do not cache image features."),
        click.option(
            "--device", default="cpu", show_default=True,
            help="Device of the towers: cpu, cuda, cuda:1, or auto for cuda if available.",
        ),
        click.option(
            "--workers", type=click.IntRange(min=1), default=4, show_default=True,
            help="Number of threads that decode images.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def column_names(options: Mapping[str, Any]) -> "ColumnNames":
    """Return the names of the columns of a table."""
    from prompt_serve.training.data.tables import ColumnNames

    return ColumnNames(image=options["image_column"], label=options["label_column"])


def report_notes(dataset: "Split") -> None:
    """Tell on stderr what was ignored or skipped while a dataset was read."""
    for note in dataset.notes:
        click.echo(f"Note: {note}", err=True)


def feature_cache(options: Mapping[str, Any]) -> "FeatureCache | None":
    """Return the feature cache of the options; None with ``--no-cache``.

    One that cannot be written is a warning, and is only read.
    """
    from prompt_serve.training.data.features import FeatureCache

    if options["no_cache"]:
        return None
    cache = FeatureCache(options["cache_folder"])
    cache.check_writable()
    return cache


def device_of(name: str) -> str:
    """Return a torch device name; "auto" is CUDA if available, else the CPU.

    Raises:
        ConfigInvalid: CUDA is requested and not available.
    """
    import torch

    from prompt_serve.errors import ConfigInvalid

    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.startswith("cuda") and not available:
        raise ConfigInvalid("--device requests CUDA, but torch finds none. Omit it to use the CPU.")
    return name
