"""``prompt-serve predict``: classify images in this process, without a service."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import json_lines_option, print_json_lines, print_table
from prompt_serve.cli.serving.options import bundle_option, device_option
from prompt_serve.cli.user_path import DASH, UserPath, read_input

if TYPE_CHECKING:
    from prompt_serve.results import ImageScores, ScoredImage

PROMPT_SUFFIX = ".safetensors"


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=UserPath(path_type=str, dash=True),
    metavar="PROMPT... IMAGE...",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of classes per prompt, best first.",
)
@bundle_option
@device_option
@json_lines_option("image")
def predict(
    files: tuple[str, ...], top_k: int, bundle: str | None, device: str, as_json: bool
) -> None:
    """Classify images with prompt files, in this process: no service, no torch.

    Files that end in .safetensors are prompts, all others images. IMAGE is a path, a URL, a folder
    (searched recursively), or - for a list of paths on standard input. An invalid image is reported
    and the others are classified; the exit code is then 1.

    \b
    prompt-serve predict pets.safetensors cat.jpg dog.jpg
    prompt-serve predict pets.safetensors colors.safetensors photos/ --json
    find photos -name '*.jpg' | prompt-serve predict pets.safetensors -
    """
    from prompt_serve.offline.model import load_model

    prompts = [file for file in files if file.lower().endswith(PROMPT_SUFFIX)]
    if not prompts:
        raise click.UsageError("No prompt file (.safetensors) was given.")
    images = _images([file for file in files if file not in prompts])
    model = load_model(prompts, bundle=bundle, device=device)
    found = model.predict(images, top_k=top_k)
    if as_json:
        print_json_lines(map(_document, found))
    else:
        several = len(prompts) > 1
        print_table(
            ("image", *(["prompt"] if several else []), "class", "probability"),
            (
                (row.source, *([row.task] if several else []), *cells)
                for image in found
                if image.error is None
                for row in image.rows
                for cells in _cells(row)
            ),
            right={"probability"},
            empty="No image could be classified.",
        )
    failed = [image for image in found if image.error is not None]
    for image in [] if as_json else failed:
        assert image.error is not None  # noqa: S101  # for the type checker
        click.echo(f"{image.source}: Error: {image.error.detail}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _images(inputs: Sequence[str]) -> list[str]:
    from prompt_serve.cli.serving.image_lists import images_in_folders
    from prompt_serve.sources.lists import listed_paths

    listed = [
        path
        for name in inputs
        for path in (listed_paths(read_input(DASH), Path("-")) if name == str(DASH) else [name])
    ]
    images = images_in_folders(listed)
    if not images:
        raise click.UsageError("No images were given.")
    return images


def _cells(row: "ScoredImage") -> Iterator[tuple[str, str]]:
    """Yield class and probability, a pair per class; of a multi-label task per label."""
    classes = row.classes
    if row.labels is not None:
        classes = tuple(score for score in row.classes if score.class_name in row.labels)
        if not classes:
            yield "(none of its labels)", ""
    for score in classes:
        mark = " (unknown)" if row.unknown else ""
        yield f"{score.class_name}{mark}", f"{score.probability:.2%}"


def _document(image: "ImageScores") -> dict[str, Any]:
    if image.error is not None:
        return {"source": image.source, "error": image.error.model_dump()}
    return {
        "source": image.source,
        "predictions": [
            {
                "task": row.task,
                "version": row.version,
                "unknown": row.unknown,
                **({} if row.similarity is None else {"similarity": row.similarity}),
                **({} if row.labels is None else {"labels": row.labels}),
                "classes": [score.model_dump() for score in row.classes],
            }
            for row in image.rows
        ],
    }
