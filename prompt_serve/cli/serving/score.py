"""``prompt-serve score``: score many images and write a table."""

import time
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.facts import json_option, print_document
from prompt_serve.cli.output_file import cannot_write
from prompt_serve.cli.serving.options import (
    Service,
    check_tasks,
    deadline_option,
    service_options,
    task_options,
    top_tasks_option,
)
from prompt_serve.cli.serving.score_here import HereOptions, here_options, score_here
from prompt_serve.cli.user_path import DASH, UserPath
from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.client import Client

_ALL_TASKS = "*"


@click.command()
@click.argument(
    "inputs", nargs=-1, required=True, type=UserPath(path_type=str, dash=True), metavar="INPUT..."
)
@task_options
@click.option(
    "-o",
    "--out",
    "target",
    type=UserPath(path_type=str, dash=True),
    required=True,
    help="Table to write: .parquet, .csv or .jsonl, or - for standard output. With --prompt also a "
    "folder or URL of one, for a Parquet dataset with a part per shard.",
)
@click.option(
    "--format",
    "stdout_format",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="Format of a table on standard output.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of classes per task in the column 'classes', best first.",
)
@top_tasks_option
@click.option(
    "--resume",
    is_flag=True,
    help="Append to an existing .csv or .jsonl table, skip its rows and retry its failed rows. "
    "With --prompt: score the parts that are missing.",
)
@click.option(
    "--mix-versions",
    is_flag=True,
    help="With --resume: append even if a task has another version than in the table.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing table.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Maximum number of requests in flight.",
)
@click.option(
    "--chunk-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Maximum number of images per request, within the service's own limits.",
)
@click.option(
    "--resize",
    is_flag=True,
    help="Resize images here and send what the model sees: the same scores, with some 90 KB "
    "instead of megabytes per photograph.",
)
@click.option(
    "--retry-for",
    "retry_for_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a request is retried while the service is down or busy.",
)
@click.option(
    "--progress/--no-progress", default=True, show_default=True, help="Show a progress bar."
)
@json_option
@deadline_option
@here_options
@service_options
def score(
    inputs: tuple[str, ...],
    tasks: tuple[str, ...],
    tags: tuple[str, ...],
    target: str,
    stdout_format: str,
    top_k: int,
    top_tasks: int | None,
    resume: bool,
    mix_versions: bool,
    overwrite: bool,
    concurrency: int,
    chunk_size: int,
    resize: bool,
    retry_for_s: float,
    progress: bool,
    as_json: bool,
    deadline_s: float | None,
    here: HereOptions | None,
    service: Service,
) -> None:
    """Score images and write a table with one row per image and task.

    With --task or --tag a service is asked. With --prompt the images are scored in this process, or
    on Ray, without one.

    Any number of tasks is scored; --top-tasks keeps the best of each image.

    INPUT is a folder (searched recursively), an image, a text list (.txt) with one path per line,
    or - for such a list on standard input. With --prompt it may also be a pattern, a tar archive
    (WebDataset), a Parquet or Arrow table with images or embeddings, a .npy file of embeddings, or
    a URL of these (s3://, gs://, hf://datasets/). An invalid image becomes a row with an error, and
    scoring continues. The exit code is 1 only if all images are invalid or the service cannot be
    reached.

    \b
    prompt-serve score photos/ --task pets --out scores.parquet
    prompt-serve score photos/ --task pets --out scores.jsonl --resume
    prompt-serve score photos/ --task '*' --top-tasks 3 --out best.csv
    find photos -name '*.jpg' | prompt-serve score - --task pets --out - | jq .class_name
    prompt-serve score photos/ --prompt pets.safetensors --out scores/ --save-embeddings features/
    """
    if target == str(DASH) and as_json:
        raise click.UsageError("--json and --out - would both write to standard output.")
    if here is not None:
        score_here(
            inputs,
            target,
            here,
            top_k=top_k,
            top_tasks=top_tasks,
            stdout_format=stdout_format,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            as_json=as_json,
        )
        return
    out = Path(target)
    from prompt_serve.cli.serving.image_lists import image_paths
    from prompt_serve.cli.serving.score_tables import (
        TableContents,
        check_output,
        check_versions,
        kept_rows,
        open_table,
        read_contents,
        remove_failed,
        row_of,
    )

    check_tasks(tasks, tags)
    notes_to_stderr = as_json or out == DASH
    check_output(out, resume=resume, overwrite=overwrite)
    paths = image_paths(inputs)
    contents = read_contents(out) if resume else TableContents()
    done = contents.done
    counts = Counter[str]()
    started = time.monotonic()
    with service.client(concurrency=concurrency, resize=resize) as client:
        versions = _task_versions(client, tasks, tags)
        remaining = _unfinished(paths, versions.keys(), done, top_tasks)
        if len(remaining) < len(paths):
            skipped = len(paths) - len(remaining)
            click.echo(
                f"Skipped {skipped:,} of {counted(len(paths), 'image')} that {out} already "
                f"contains.",
                err=notes_to_stderr,
            )
        if remaining and not mix_versions:
            check_versions(out, contents, versions)
        again, selected = set(remaining), {*versions, *tasks, *(f"tag:{tag}" for tag in tags)}
        retried = {row for row in contents.failed if row[0] in again and row[1] in selected}
        if retried:
            click.echo(
                f"Retrying {counted(len(retried), 'failed row')} of {out}.", err=notes_to_stderr
            )
            remove_failed(out, retried)
        rows = client.score(
            remaining,
            # The best tasks are the service's choice; all tasks are the same for every image.
            tasks if top_tasks else tuple(versions),
            tags=tags if top_tasks else (),
            top_k=top_k,
            top_tasks=top_tasks,
            chunk_size=chunk_size,
            retry_for_s=retry_for_s,
            deadline_s=deadline_s,
            progress=progress,
        )
        try:
            # Closed first, so that its progress bar ends before anything else is printed.
            opened = open_table(out, resume=resume, stdout_format=stdout_format)
            with opened as table, closing(rows):
                for row in rows:
                    if (row.source, row.task) not in done:
                        table.write(row_of(row))
                    counts["failed" if row.error else "unknown" if row.unknown else "known"] += 1
        except OSError as error:
            if out == DASH:
                raise
            raise click.ClickException(f"{cannot_write(out, error)} {kept_rows(out)}") from error
    elapsed_s = time.monotonic() - started
    if as_json:
        print_document(_summary(counts, len(remaining), elapsed_s, out))
    else:
        click.echo(_summary_line(counts, len(remaining), elapsed_s, out), err=notes_to_stderr)
    # On resume, images that failed before may be all that was left.
    if counts.total() and counts["failed"] == counts.total() and not done:
        click.echo("Error: No image could be scored; see the column 'error'.", err=True)
        raise click.exceptions.Exit(1)


def _unfinished(
    paths: Sequence[str], tasks: Set[str], done: Set[tuple[str, str]], top_tasks: int | None
) -> list[str]:
    """Return the images that have fewer rows than tasks, or than ``top_tasks``."""
    n_rows = Counter(source for source, task in done if task in tasks)
    n_tasks = min(len(tasks), top_tasks or len(tasks))
    return [path for path in paths if n_rows[path] < n_tasks]


def _task_versions(
    client: "Client", tasks: tuple[str, ...], tags: tuple[str, ...]
) -> dict[str, str | None]:
    """Resolve ``*`` and tags to the current task names, so that all rows have the same tasks.

    Returns:
        The version of each task; None for ``NAME@VERSION``.
    """
    from prompt_serve.errors import TaskNotFound

    named = [task for task in tasks if task != _ALL_TASKS]
    # A misspelled name is reported before the table is opened.
    found = {task: None if "@" in task else client.task(task).version for task in named}
    if tags or len(named) < len(tasks):
        use_all = len(named) < len(tasks)
        for task in client.tasks():
            if task.servable and (use_all or set(task.tags) & set(tags)):
                found[task.name] = task.version
    if not found:
        raise TaskNotFound(
            f"No task has the {'tag' if len(tags) == 1 else 'tags'} {', '.join(tags)}.",
            name="",
            loaded=(),
        )
    return found


def _summary(counts: Counter[str], n_images: int, elapsed_s: float, out: Path) -> dict[str, Any]:
    return {
        "table": str(out),
        "images": n_images,
        "rows": counts.total(),
        "errors": counts["failed"],
        "unknown": counts["unknown"],
        "seconds": round(elapsed_s, 3),
    }


def _summary_line(counts: Counter[str], n_images: int, elapsed_s: float, out: Path) -> str:
    speed = n_images / elapsed_s if elapsed_s > 0 else 0.0
    return (
        f"{'standard output' if out == DASH else out}: {counted(n_images, 'image')}, "
        f"{counted(counts.total(), 'row')} in {elapsed_s:.1f} s ({speed:.1f} images/s), "
        f"{counted(counts['failed'], 'error')}"
        + (f", {counts['unknown']:,} unknown." if counts["unknown"] else ".")
    )
