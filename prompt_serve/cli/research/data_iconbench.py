"""``prompt-serve data iconbench``: download and render a freely available benchmark."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import json_option, print_document
from prompt_serve.cli.output_file import OutputFolder
from prompt_serve.cli.user_path import UserPath

if TYPE_CHECKING:
    from prompt_serve.research.iconbench.build import BuiltBenchmark


@click.command()
@click.option(
    "--out", "folder", type=OutputFolder(),
    help="Output folder. [default: iconbench in $PROMPT_SERVE_CACHE, or "
    "~/.cache/prompt-serve/iconbench]",
)  # fmt: skip
@click.option(
    "--cache", "downloads", type=UserPath(),
    help="Folder of npm packages, named as by npm pack; missing ones are downloaded into it. "
    "[default: downloads in the default --out]",
)  # fmt: skip
@click.option(
    "--registry", metavar="URL",
    help="npm registry to download from. [default: $NPM_CONFIG_REGISTRY, or "
    "https://registry.npmjs.org]",
)  # fmt: skip
@click.option("--offline", is_flag=True, help="Download nothing; use the packages in --cache.")
@click.option(
    "--size", type=click.IntRange(min=16, max=1024), default=224, show_default=True,
    help="Side length of the images in pixels.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True,
    help="Number of processes that render images.",
)  # fmt: skip
@json_option
def iconbench(**options: Any) -> None:
    """Build IconBench from emoji on npm.

    Downloads 36 MB and renders eleven tasks in eleven styles. Packages are verified by checksum.
    Existing files are kept, so an interrupted run resumes.

    Example: prompt-serve data iconbench --workers 4
    """
    from prompt_serve.research.iconbench.build import build_iconbench
    from prompt_serve.training.progress import Progress

    as_json = options.pop("as_json")
    built = build_iconbench(**options, progress=Progress(quiet=as_json))
    if built.pixels_as_pinned is False:
        click.echo(
            f"Warning: the pixels differ from those of the published figures (resvg "
            f"{built.made.resvg}), so results may differ slightly. If files were changed, delete "
            f"{built.folder / 'drawings'} and run this again.",
            err=True,
        )
    if as_json:
        print_document(_described(built))
    else:
        click.echo("\n".join(_table(built)))


def _described(built: "BuiltBenchmark") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "folder": str(built.folder),
        "drawings": len(built.selection.drawings),
        "tasks": [{"name": name, **counts} for name, counts in built.counts().items()],
        "pixels_as_pinned": built.pixels_as_pinned,
        **asdict(built.made),
    }


def _table(built: "BuiltBenchmark") -> Iterator[str]:
    counts = built.counts()
    columns = list(next(iter(counts.values())))
    yield f"{'task':<13}" + "".join(f" {column:>11}" for column in columns)
    for name, row in counts.items():
        yield f"{name:<13}" + "".join(f" {row[column]:>11,}" for column in columns)
    yield ""
    yield f"{len(built.selection.drawings):,} drawings in {built.folder}; authors and licenses are"
    yield "in its LICENSES.md. The test part is emojione, emojione-v1 and fxemoji together; each of"
    yield "them is also a domain."
