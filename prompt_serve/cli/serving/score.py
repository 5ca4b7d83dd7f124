"""``prompt-serve score``: score any number of images into a table."""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prompt_serve.cli.serving.options import (
    check_tasks,
    deadline_option,
    service_options,
    task_options,
)

if TYPE_CHECKING:
    from prompt_serve.client import Client

_EVERY_TASK = "*"


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(), metavar="INPUT...")
@task_options
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Table to write: .parquet, .csv or .jsonl.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Classes kept of each task, best first, in the column 'classes'.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with a .csv or .jsonl table: skip what it holds."
)
@click.option("--overwrite", is_flag=True, help="Replace a table that exists.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Requests in flight.",
)
@click.option(
    "--chunk-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Images a request, at most; the service's own limit is kept as well.",
)
@click.option(
    "--retry-for",
    "retry_for_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to go on asking a service that restarts or is busy.",
)
@click.option("--progress/--no-progress", default=True, show_default=True, help="Progress bar.")
@deadline_option
@service_options
def score(
    inputs: tuple[str, ...],
    tasks: tuple[str, ...],
    tags: tuple[str, ...],
    out: Path,
    top_k: int,
    resume: bool,
    overwrite: bool,
    concurrency: int,
    chunk_size: int,
    retry_for_s: float,
    progress: bool,
    deadline_s: float | None,
    url: str,
    timeout_s: float,
) -> None:
    """Score images into a table: a row for each image and task.

    INPUT is a folder (with all below it), an image, or a text list (.txt) with a path on each
    line. A bad image is a row with an error and stops nothing; the exit code is 1 only where
    every image is bad, or the service cannot be asked.

    \b
    prompt-serve score photos/ --task pets --out scores.parquet
    prompt-serve score photos/ --task pets --out scores.jsonl --resume
    """
    from prompt_serve.cli.serving.image_lists import image_paths
    from prompt_serve.cli.serving.score_tables import check_output, open_table, row_of, rows_done
    from prompt_serve.client import Client

    check_tasks(tasks, tags)
    check_output(out, resume=resume, overwrite=overwrite)
    paths = image_paths(inputs)
    done = rows_done(out) if resume else set()
    counts = Counter[str]()
    started = time.monotonic()
    with Client(url, timeout_s=timeout_s, concurrency=concurrency) as client:
        tasks = _tasks_meant(client, tasks, tags)
        left = [path for path in paths if not all((path, task) in done for task in tasks)]
        if len(left) < len(paths):
            click.echo(f"{len(paths) - len(left):,} of {len(paths):,} images are in {out} already.")
        rows = client.score(
            left,
            tasks,
            top_k=top_k,
            chunk_size=chunk_size,
            retry_for_s=retry_for_s,
            deadline_s=deadline_s,
            progress=progress,
        )
        with open_table(out, resume=resume) as table:
            for row in rows:
                if (row.source, row.task) not in done:
                    table.write(row_of(row))
                counts["failed" if row.error else "unknown" if row.unknown else "known"] += 1
    _summarize(counts, len(left), time.monotonic() - started, out)


def _tasks_meant(
    client: "Client", tasks: tuple[str, ...], tags: tuple[str, ...]
) -> tuple[str, ...]:
    """The names behind ``*`` and tags as they are now: the rows of a table are of these tasks."""
    from prompt_serve.errors import TaskNotFound

    named = [task for task in tasks if task != _EVERY_TASK]
    for task in named:
        if "@" not in task:
            client.task(task)  # a misspelt name is told before a table is touched
    if tags or len(named) < len(tasks):
        is_every = len(named) < len(tasks)
        named += [t.name for t in client.tasks() if is_every or set(t.tags) & set(tags)]
    if not named:
        raise TaskNotFound(f"No task has the tag(s) {', '.join(tags)}.", name="", loaded=())
    return tuple(dict.fromkeys(named))


def _summarize(counts: Counter[str], n_images: int, elapsed_s: float, out: Path) -> None:
    failed, n_rows = counts["failed"], counts.total()
    speed = n_images / elapsed_s if elapsed_s > 0 else 0.0
    click.echo(
        f"{out}: {n_images:,} images, {n_rows:,} rows in {elapsed_s:.1f} s "
        f"({speed:.1f} images/s), {failed:,} errors"
        + (f", {counts['unknown']:,} unknown." if counts["unknown"] else ".")
    )
    if n_rows and failed == n_rows:
        click.echo("Error: no image could be scored; the column 'error' says why.", err=True)
        raise click.exceptions.Exit(1)
