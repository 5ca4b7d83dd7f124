"""``prompt-serve classify``: classify a few images with a running service."""

import click

from prompt_serve.cli.facts import json_lines_option, print_json_lines
from prompt_serve.cli.serving.options import (
    Service,
    check_tasks,
    deadline_option,
    service_options,
    task_options,
    top_tasks_option,
)
from prompt_serve.cli.user_path import UserPath


@click.command()
@click.argument(
    "images", nargs=-1, required=True, type=UserPath(path_type=str, dash=True), metavar="IMAGE..."
)
@task_options
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of classes per task, best first.",
)
@top_tasks_option
@json_lines_option("image")
@deadline_option
@service_options
def classify(
    images: tuple[str, ...],
    tasks: tuple[str, ...],
    tags: tuple[str, ...],
    top_k: int,
    top_tasks: int | None,
    as_json: bool,
    deadline_s: float | None,
    service: Service,
) -> None:
    """Classify a few images with a running service.

    IMAGE is a path, - for standard input, a folder (searched recursively), or a URL if the service
    is configured to fetch images. An invalid image is reported and the others are classified; the
    exit code is then 1. If a task has a threshold for unknown images, images below it are marked
    "unknown". A multi-label task names the labels of the image, if any; its percentages do not add
    up to 100. With --json, "source" is the path as it was given or found.

    \b
    prompt-serve classify cat.jpg dog.jpg --task pets --top-k 3
    prompt-serve classify cat.jpg --tag season --deadline 2
    prompt-serve classify cat.jpg --task '*' --top-tasks 3
    curl -s https://example.org/cat.jpg | prompt-serve classify - --task pets
    """
    from prompt_serve.cli.serving.image_lists import image_source, images_in_folders

    check_tasks(tasks, tags)
    paths = images_in_folders(images)
    if not paths:
        raise click.UsageError(f"No images in {', '.join(images)}.")
    with service.client() as client:
        images_to_send = list(map(image_source, paths))
        results = client.classify(
            images_to_send, tasks, top_k, tags=tags, top_tasks=top_tasks, deadline_s=deadline_s
        )
    for path, result in zip(paths, results, strict=True):
        if as_json:
            print_json_lines([{"source": path, **result.model_dump(exclude_none=True)}])
        elif result.error is not None:
            click.echo(f"{path}: Error: {result.error.detail}", err=True)
        for prediction in [] if as_json else result.predictions or []:
            verdict = "  unknown: none of its classes" if prediction.unknown else ""
            if prediction.labels is not None:
                verdict += f"  labels: {', '.join(prediction.labels) or 'none'}"
            click.echo(f"{path}  {prediction.task}{verdict}")
            for score in prediction.classes:
                click.echo(f"  {score.probability:7.2%}  {score.class_name}")
    if any(result.error for result in results):
        raise click.exceptions.Exit(1)
