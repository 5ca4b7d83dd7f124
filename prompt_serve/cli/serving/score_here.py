"""``prompt-serve score --prompt``: score in this process, or on Ray, without a service."""

import functools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from prompt_serve.cli.facts import print_document
from prompt_serve.cli.serving.image_lists import report_ignored
from prompt_serve.cli.serving.options import bundle_option, device_option
from prompt_serve.cli.user_path import DASH, UserPath, read_input
from prompt_serve.errors import ConfigInvalid, counted
from prompt_serve.files import check_writable, check_writable_folder

if TYPE_CHECKING:
    from prompt_serve.offline.score_job import Counts, ShardScorer
    from prompt_serve.offline.score_run import NumberedShard

Command = TypeVar("Command", bound=Callable[..., Any])

FILE_SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class HereOptions:
    """Options of the command that are for scoring here."""

    prompts: tuple[str, ...]
    bundle: str | None
    device: str
    save_embeddings: str | None
    column: str | None
    shard_size: int | None
    engine: str
    address: str | None
    workers: int | None
    cores_per_worker: int | None


# Options that ask a service, and those that are for scoring here, by parameter.
_OF_SERVICE = (
    *("tasks", "tags", "mix_versions", "concurrency", "chunk_size"),
    *("retry_for_s", "deadline_s", "url", "api_key", "timeout_s"),
)
_OF_RAY = ("address", "workers", "cores_per_worker")
_OF_HERE = ("bundle", "device", "save_embeddings", "column", "shard_size", "engine", *_OF_RAY)


def here_options(command: Command) -> Command:
    """Add ``--prompt`` and what goes with it; the command receives them as ``here``.

    ``here`` is None without ``--prompt``: a service is asked.
    """

    @functools.wraps(command)
    def with_here(*arguments: Any, prompts: tuple[str, ...], **options: Any) -> Any:
        own = {name: options.pop(name) for name in _OF_HERE}
        _check_one_way(bool(prompts))
        here = HereOptions(prompts=prompts, **own) if prompts else None
        if own["engine"] != "ray" and any(own[name] is not None for name in _OF_RAY):
            raise click.UsageError("--address, --workers and --cores-per-worker need --engine ray.")
        return command(*arguments, here=here, **options)

    for option in (
        click.option(
            "--cores-per-worker",
            type=click.IntRange(min=1),
            help="With --engine ray: cores of an encoder on a CPU.  [default: 4, or all]",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="With --engine ray: number of encoders.  [default: as many as fit: one per GPU, "
            "or per --cores-per-worker]",
        ),
        click.option(
            "--address",
            metavar="ADDRESS",
            help="With --engine ray: address of the cluster, auto for the one on this machine, or "
            "ray://HOST:10001.  [default: start one on this machine]",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="With --prompt: score in this process, or on a Ray cluster.",
        ),
        click.option(
            "--shard-size",
            type=click.IntRange(min=1),
            help="With --prompt: images per part.  [default: 4096; 262144 embeddings of a .npy "
            "file]",
        ),
        click.option(
            "--column",
            metavar="NAME",
            help="With --prompt: column of a table with images or embeddings.  [default: found by "
            "name and type]",
        ),
        click.option(
            "--save-embeddings",
            metavar="FOLDER",
            type=UserPath(path_type=str),
            help="With --prompt: also keep the embeddings, as a Parquet dataset that can be scored "
            "again without the images.",
        ),
        device_option,
        bundle_option,
        click.option(
            "--prompt",
            "prompts",
            multiple=True,
            metavar="FILE",
            type=UserPath(path_type=str),
            help="Prompt file to score with, in this process, in place of --task. Repeatable.",
        ),
    ):
        option(with_here)
    return with_here  # type: ignore[return-value]  # the same command to click


def _check_one_way(here: bool) -> None:
    """Raise UsageError if the command line has options of both ways to score."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source != ParameterSource.COMMANDLINE:
            continue
        if here and parameter.name in _OF_SERVICE:
            raise click.UsageError(
                f"{parameter.opts[0]} is for a service, and --prompt scores without one; leave one "
                f"of them out."
            )
        if not here and parameter.name in _OF_HERE:
            raise click.UsageError(
                f"{parameter.opts[0]} is for scoring without a service; it needs --prompt FILE."
            )


def score_here(
    inputs: Sequence[str],
    out: str,
    options: HereOptions,
    *,
    top_k: int,
    top_tasks: int | None,
    stdout_format: str,
    resume: bool,
    overwrite: bool,
    progress: bool,
    as_json: bool,
) -> None:
    """Score images or embeddings, and write a folder of parts, one file, or standard output."""
    from prompt_serve.image_folders import Ignored
    from prompt_serve.offline.model import named_prompts
    from prompt_serve.offline.score_job import ScoreJob, ShardScorer
    from prompt_serve.offline.score_run import Pending, pending, run_here
    from prompt_serve.sources.plan import shards_of

    started = time.monotonic()
    to_stdout = out == str(DASH)
    if to_stdout:
        _check_stdout(options.engine, resume=resume)
        target = _Target(out, None)
    else:
        target = _Target.of(out, resume=resume, overwrite=overwrite)
    prompts = {name: str(path) for name, path in named_prompts(options.prompts).items()}
    job = ScoreJob(
        prompts=prompts,
        bundle=options.bundle,
        device=options.device,
        top_k=top_k,
        top_tasks=top_tasks,
        out=target.parts,
        embeddings=options.save_embeddings,
    )
    ignored = Ignored()
    shards = shards_of(
        [name for name in inputs if name != str(DASH)],
        ignored,
        listed=_listed() if str(DASH) in inputs else (),
        rows_per_shard=options.shard_size,
        column=options.column,
    )
    report_ignored(ignored)
    scorer = ShardScorer(job, job.load())
    for shard in shards:
        scorer.check(shard)
    todo = (
        Pending(list(enumerate(shards)), 0)
        if to_stdout
        else pending(scorer, shards, resume=resume, overwrite=overwrite)
    )
    if todo.done:
        click.echo(
            f"Skipped {todo.done:,} of {counted(len(shards), 'part')} that are there already.",
            err=True,
        )
    with _bar(todo.images, shown=progress) as advance:
        if to_stdout:
            counts = _print_scores(scorer, todo.shards, advance, stdout_format)
        elif options.engine == "ray":
            from prompt_serve.ray import Workers, cluster, run_on_ray

            pool = Workers(count=options.workers, cores=options.cores_per_worker)
            with cluster(options.address):
                counts = run_on_ray(
                    scorer, todo.shards, advance, device=options.device, workers=pool
                )
        else:
            counts = run_here(scorer, todo.shards, advance)
    if not to_stdout:
        target.finish(scorer.out.names())
    seconds = time.monotonic() - started
    if as_json:
        print_document(_summary(counts, len(todo.shards), seconds, out))
    else:
        name = "standard output" if to_stdout else out
        click.echo(_line(counts, len(todo.shards), seconds, name), err=to_stdout)
    if counts.rows and counts.errors == counts.rows and not todo.done:
        click.echo("Error: No image could be scored; see the column 'error'.", err=True)
        raise click.exceptions.Exit(1)


def _check_stdout(engine: str, *, resume: bool) -> None:
    if resume:
        raise ConfigInvalid("A table on standard output cannot be resumed; name a file or folder.")
    if engine == "ray":
        raise click.UsageError("--engine ray writes parts; --out - is for one process.")


def _print_scores(
    scorer: "ShardScorer",
    shards: Sequence["NumberedShard"],
    advance: Callable[[int], object],
    stdout_format: str,
) -> "Counts":
    """Write rows to standard output as soon as they are known."""
    from prompt_serve.cli.serving.score_tables import open_table
    from prompt_serve.offline.score_job import Counts

    total = Counts()
    with open_table(DASH, stdout_format=stdout_format) as output:
        for index, shard in shards:
            for batch in scorer.features(index, shard):
                for table, counts in scorer.tables(batch):
                    for row in table.to_pylist():
                        output.write(row)
                    total += counts
                advance(len(batch.sources))
    return total


@contextmanager
def _bar(images: int | None, *, shown: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=images, unit="image", disable=not shown, smoothing=0.05) as bar:
        yield bar.update


def _listed() -> Iterator[str]:
    from prompt_serve.sources.lists import listed_paths

    return listed_paths(read_input(DASH), DASH)


@dataclass(frozen=True)
class _Target:
    """Where the parts go, and the file that they become."""

    parts: str  # folder
    file: Path | None  # None: the parts stay as they are

    @classmethod
    def of(cls, out: str, *, resume: bool, overwrite: bool) -> "_Target":
        """Check an output before any work.

        Raises:
            ConfigInvalid: it exists and is not to be replaced, or has another suffix.
            OSError: it cannot be written.
        """
        from prompt_serve.sources.files import is_url

        out = out.removeprefix("file://")
        path = Path(out)
        if is_url(out):
            return cls(out, None)
        if path.is_dir() or not path.suffix:
            check_writable_folder(path)
            return cls(out, None)
        if path.suffix.lower() not in FILE_SUFFIXES:
            raise ConfigInvalid(
                f"{path} has no known table format; expected the suffix .parquet, .csv or .jsonl, "
                f"or a folder."
            )
        check_writable(path)
        if path.exists() and not overwrite:
            raise ConfigInvalid(f"{path} exists. Add --overwrite to replace it.")
        return cls(str(path.with_name(f".{path.name}.parts")), path)

    def finish(self, names: Sequence[str]) -> None:
        """Join the parts to the file, if it is one, and remove them."""
        if self.file is None:
            return
        from prompt_serve.cli.serving.score_tables import join_parts

        folder = Path(self.parts)
        joined = folder / f"joined{self.file.suffix.lower()}"
        join_parts([folder / name for name in names], joined)
        joined.replace(self.file)
        shutil.rmtree(folder)


def _summary(counts: "Counts", parts: int, seconds: float, out: str) -> dict[str, Any]:
    return {
        "table": out,
        "parts": parts,
        "images": counts.images,
        "rows": counts.rows,
        "errors": counts.errors,
        "unknown": counts.unknown,
        "seconds": round(seconds, 3),
    }


def _line(counts: "Counts", parts: int, seconds: float, out: str) -> str:
    speed = counts.images / seconds if seconds > 0 else 0.0
    return (
        f"{out}: {counted(counts.images, 'image')}, {counted(counts.rows, 'row')} in "
        f"{counted(parts, 'part')}, {seconds:.1f} s ({speed:.1f} images/s), "
        f"{counted(counts.errors, 'error')}"
        + (f", {counts.unknown:,} unknown." if counts.unknown else ".")
    )
