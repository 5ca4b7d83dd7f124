"""``prompt-serve data``: list, check and build benchmark datasets."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import Report, json_option, print_document, print_table
from prompt_serve.cli.user_path import UserPath
from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.research.datasets.spec import DatasetSpec
    from prompt_serve.training.data.dataset import ImageSet

# Commands of the group in other modules: name -> module and object.
_ELSEWHERE = {"iconbench": ("prompt_serve.cli.research.data_iconbench", "iconbench")}


class DataGroup(click.Group):
    """A group that imports some of its commands on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        elsewhere = [
            name for name, (module, _) in _ELSEWHERE.items() if importlib.util.find_spec(module)
        ]
        return [*super().list_commands(ctx), *elsewhere]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE and cmd_name in self.list_commands(ctx):
            module, name = _ELSEWHERE[cmd_name]
            command: click.Command = getattr(importlib.import_module(module), name)
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=DataGroup)
def data() -> None:
    """List, check and build benchmark datasets.

    \b
    prompt-serve data list --datasets-root /data
    prompt-serve data check oxford_pets --datasets-root /data
    """


root_option = click.option(
    "--datasets-root", "root", type=UserPath(), default=Path("datasets"),
    show_default=True, envvar="PROMPT_SERVE_DATASETS", show_envvar=True,
    help="Folder with imagenet/, caltech-101/, oxford_pets/ and so on, in the layout of CoOp's "
    "DATASETS.md.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ListedDataset:
    """One dataset in the list."""

    spec: "DatasetSpec"
    kind: str  # "dataset" or "domain"
    folder: Path | None  # None: it is missing
    missing: str  # what is missing and what to download; empty if nothing is

    def document(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "title": self.spec.title,
            "kind": self.kind,
            "there": self.folder is not None,
            "folder": None if self.folder is None else str(self.folder),
            "missing": self.missing,
            "classes": self.spec.classes,
            "images": dict(self.spec.sizes),
            "fetch": list(self.spec.fetch),
            "note": self.spec.note,
        }


@data.command("list")
@root_option
@json_option
def list_datasets(root: Path, as_json: bool) -> None:
    """List the papers' datasets on disk.

    Missing datasets are listed with download instructions. Only folders are checked; "data check"
    reads a dataset.

    \b
    prompt-serve data list --datasets-root /data
    """
    rows = _rows(root)
    if as_json:
        documents = [row.document() for row in rows]
        print_document({"root": str(root), "datasets": documents})
        return
    _print_table(root, rows)


@data.command()
@click.argument("name")
@root_option
@click.option("--decode", is_flag=True, help="Also decode every image; slow for large datasets.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=4, show_default=True,
    help="Number of threads that decode images.",
)  # fmt: skip
@json_option
def check(name: str, root: Path, decode: bool, workers: int, as_json: bool) -> None:
    """Read the dataset NAME and compare it with the published one.

    Checks the files, the numbers of classes and images, the order of the labels, and that the
    split is the published one rather than a new draw.

    \b
    prompt-serve data check eurosat --datasets-root /data
    """
    spec, class_names, parts = _read(name, root)
    if decode:
        _decode(spec, parts, workers, quiet=as_json)
    sizes = {part: len(images) for part, images in parts.items()}
    new = class_names[(len(class_names) + 1) // 2] if len(parts) > 1 else None
    lines = [
        f"{spec.name}: {spec.title}, as published.",
        f"{counted(len(class_names), 'class')}, from {class_names[0]!r} to {class_names[-1]!r}",
        *(f"{part}: {counted(size, 'image')}" for part, size in sizes.items()),
        *([f"The new classes begin with {new!r}."] if new is not None else []),
        *([f"Note: {spec.note}"] if spec.note else []),
    ]
    document = {
        "name": spec.name,
        "title": spec.title,
        "class_names": list(class_names),
        "images": sizes,
        "first_new_class": new,
        "note": spec.note,
    }
    Report(document, lines).print(as_json=as_json)


def _rows(root: Path) -> list[ListedDataset]:
    from prompt_serve.research.datasets.locations import DatasetLocation, find_dataset
    from prompt_serve.research.datasets.spec import imagenet_domains, paper_datasets

    rows = []
    for kind, specs in (("dataset", paper_datasets()), ("domain", imagenet_domains())):
        for spec in specs.values():
            found = find_dataset(root, spec)
            there = isinstance(found, DatasetLocation)
            rows.append(
                ListedDataset(
                    spec=spec,
                    kind=kind,
                    folder=found.folder if isinstance(found, DatasetLocation) else None,
                    missing="" if there else str(found),
                )
            )
    return rows


def _print_table(root: Path, rows: list[ListedDataset]) -> None:
    found = sum(row.folder is not None for row in rows)
    click.echo(f"{found} of {len(rows)} datasets found below {root}.\n")
    print_table(
        ("dataset", "state", "classes", "images", "folder"),
        (
            (
                row.spec.name,
                "missing" if row.folder is None else "found",
                f"{row.spec.classes:,}",
                ", ".join(f"{part} {size:,}" for part, size in row.spec.sizes.items()),
                str(row.folder or ""),
            )
            for row in rows
        ),
        right={"classes"},
        empty="No datasets.",
    )
    for row in rows:
        if row.missing:
            click.echo(f"\n{row.spec.name}: {row.missing}")


def _read(name: str, root: Path) -> tuple["DatasetSpec", tuple[str, ...], dict[str, "ImageSet"]]:
    from prompt_serve.errors import DatasetMissing
    from prompt_serve.research.datasets.locations import DatasetLocation, find_dataset
    from prompt_serve.research.datasets.papers import domain_images
    from prompt_serve.research.datasets.readers import read_split
    from prompt_serve.research.datasets.spec import imagenet_domains

    spec = _spec_called(name)
    location = find_dataset(root, spec)
    if not isinstance(location, DatasetLocation):
        raise DatasetMissing(f"Dataset {spec.name!r} is missing: {location}", name=spec.name)
    if spec.name in imagenet_domains():
        images = domain_images(location, spec, root)
        return spec, images.class_names, {"test": images}
    split = read_split(location, spec)
    return spec, split.class_names, split.parts


def _spec_called(name: str) -> "DatasetSpec":
    from prompt_serve.errors import did_you_mean
    from prompt_serve.research.datasets.locations import normalized_name
    from prompt_serve.research.datasets.spec import imagenet_domains, paper_datasets

    specs = {**paper_datasets(), **imagenet_domains()}
    for spec in specs.values():
        if normalized_name(name) in map(normalized_name, (spec.name, spec.title, *spec.folders)):
            return spec
    raise click.BadParameter(
        f"{name!r} is not one of {', '.join(specs)}.{did_you_mean(name, specs)}", param_hint="NAME"
    )


def _decode(
    spec: "DatasetSpec", parts: dict[str, "ImageSet"], workers: int, *, quiet: bool
) -> None:
    from prompt_serve.errors import DatasetInvalid
    from prompt_serve.training.data.dataset import limited
    from prompt_serve.training.data.loading import image_faults
    from prompt_serve.training.progress import Progress

    items = [item for images in parts.values() for item in images.items]
    with Progress(quiet=quiet).bar("decoding images", len(items), "image") as advance:
        faults = image_faults(items, workers=workers, advance=advance)
    if faults:
        raise DatasetInvalid(f"{spec.title} has images that cannot be read:", limited(faults))
