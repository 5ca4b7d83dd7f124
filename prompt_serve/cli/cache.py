"""``prompt-serve cache``: show and clear what can be computed again."""

import click

from prompt_serve.cli.facts import json_lines_option, print_json_lines, print_table
from prompt_serve.errors import counted


@click.group()
def cache() -> None:
    """Show and clear the caches of image features, images, datasets and backbones.

    They are in PROMPT_SERVE_CACHE, by default ~/.cache/prompt-serve. PROMPT_SERVE_CACHE_LIMIT (20GB
    by default) limits the image features, and the images copied from object stores, tables and
    archives: those that were not used for longest are removed.

    \b
    prompt-serve cache info
    prompt-serve cache clear features
    """


@cache.command()
@json_lines_option("cache")
def info(as_json: bool) -> None:
    """List the caches with their sizes.

    \b
    prompt-serve cache info
    """
    from prompt_serve.training.data.cache_folder import cache_root, cache_uses

    uses = cache_uses()
    if as_json:
        print_json_lines(
            {
                "cache": use.kind,
                "folder": str(use.folder),
                "files": use.files,
                "size_bytes": use.size_bytes,
            }
            for use in uses
        )
        return
    print_table(
        ("cache", "files", "size", "folder"),
        (
            (use.kind, f"{use.files:,}", f"{use.size_bytes / 1e6:,.1f} MB", str(use.folder))
            for use in uses
        ),
        right={"files", "size"},
        empty=f"There is no cache in {cache_root()} yet; train fills it.",
    )


@cache.command()
@click.argument("kinds", nargs=-1, metavar="[CACHE]...")
@json_lines_option("cache")
def clear(kinds: tuple[str, ...], as_json: bool) -> None:
    """Remove caches, by default all of them. What is needed again is computed again.

    \b
    prompt-serve cache clear
    prompt-serve cache clear features
    """
    from prompt_serve.training.data import cache_folder

    removed = [
        cache_folder.clear(kind)
        for kind in kinds or [use.kind for use in cache_folder.cache_uses()]
    ]
    if as_json:
        print_json_lines(
            {"cache": use.kind, "files": use.files, "size_bytes": use.size_bytes} for use in removed
        )
        return
    for use in removed:
        click.echo(
            f"{use.kind}: {counted(use.files, 'file')}, {use.size_bytes / 1e6:,.1f} MB removed."
        )
    if not removed:
        click.echo("There is no cache to remove.", err=True)
