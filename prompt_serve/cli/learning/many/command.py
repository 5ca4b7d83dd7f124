"""``prompt-serve train-many``: the runs of one file, and a table of their results."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.engine_options import PROCESSES, Engine, engine_options
from prompt_serve.cli.facts import Report, json_option, print_document, print_table, table_lines
from prompt_serve.cli.learning.image_options import device_of, tower_options
from prompt_serve.cli.output_file import OutputFolder
from prompt_serve.cli.user_path import UserPath
from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.training.many.plan import PlannedRun
    from prompt_serve.training.many.results import RunRow

STATES = {
    "new": "train",
    "changed": "train anew: its inputs have changed",
    "interrupted": "resume",
    "failed": "try again",
    "complete": "skip: it is complete",
}


@click.command("train-many")
@click.argument("spec", type=UserPath())
@click.option(
    "--out", "-o", type=OutputFolder(), required=True,
    help="Folder to write: results.csv and results.json with means and standard deviations, "
    "runs.csv, report.html, and one folder per run with prompt, log and settings. Complete runs "
    "that it already contains are not trained again.",
)  # fmt: skip
@click.option(
    "--dry-run", is_flag=True, help="List the runs and what would be done; write nothing."
)
@tower_options
@click.option("--quiet", is_flag=True, help="Print no progress and no table.")
@json_option
def train_many(spec: Path, out: Path, **options: Any) -> None:
    """Train and measure all runs of the TOML file SPEC: datasets x methods x seeds.

    Every run is a prompt-serve train of its own, resumed where it was interrupted, and measured on
    the test images, or else on images that were held out. A run that fails is a row with an error;
    the others continue, and the exit code is 1.

    \b
    seeds = [1, 2, 3]
    shots = [4, 16]                    # optional
    [settings]                         # optional, of all methods
    epochs = 50
    [datasets]
    pets = "pets/"                     # relative to SPEC
    [methods.class-vectors]
    [methods.dip-8]
    method = "dip"
    rank = 8

    Example: prompt-serve train-many runs.toml --out runs/
    """
    from prompt_serve.training.many.plan import plan_runs
    from prompt_serve.training.many.spec import read_spec

    engine = Engine.of(options)
    if engine.name == PROCESSES:  # the nodes of a cluster have other devices
        device_of(options["device"])
    runs = plan_runs(read_spec(spec), out.absolute())
    if options["dry_run"]:
        _print_plan(runs, as_json=options["as_json"])
    else:
        _train(runs, engine, options)
        _finish(runs, out, spec.stem, options)


train_many = engine_options(train_many, local=False)


def _train(runs: "Sequence[PlannedRun]", engine: Engine, options: Mapping[str, Any]) -> None:
    """Train the runs that are not complete; tell of each that ends."""
    from prompt_serve.cli.learning.many.one_run import RunOrder, train_run
    from prompt_serve.training.many.processes import Failed
    from prompt_serve.training.many.results import row_of

    def tell(text: str) -> None:
        if not options["quiet"]:
            click.echo(text, err=True)

    todo = [run for run in runs if run.state != "complete"]
    if len(todo) < len(runs):
        tell(f"{counted(len(runs) - len(todo), 'run')} complete already.")
    orders = [RunOrder.of(run, options) for run in todo]
    for done, (index, outcome) in enumerate(engine.map(train_run, orders), start=1):
        if isinstance(outcome, Failed):
            todo[index].store("failed", error=outcome.message)
        tell(f"[{done}/{len(todo)}] {_line(row_of(todo[index]))}")


def _finish(
    runs: "Sequence[PlannedRun]", out: Path, title: str, options: Mapping[str, Any]
) -> None:
    """Write and print the results; exit with 1 if some runs failed."""
    from prompt_serve.training.many.report import write_report
    from prompt_serve.training.many.results import (
        REPORT,
        RUNS,
        document_of,
        row_of,
        write_results,
    )

    rows = [row_of(run) for run in runs]
    write_results(out, rows)
    write_report(out / REPORT, title, rows)
    document = {**document_of(rows), "report": str(out / REPORT)}
    Report(document, list(_lines(rows, out))).print(
        as_json=options["as_json"], quiet=options["quiet"]
    )
    if failed := [row for row in rows if row.status != "complete"]:
        of_all = f"{len(failed)} of {counted(len(rows), 'run')}"
        click.echo(f"Error: {of_all} failed; see {out / RUNS}.", err=True)
        raise click.exceptions.Exit(1)


def _print_plan(runs: "Sequence[PlannedRun]", *, as_json: bool) -> None:
    if as_json:
        print_document([
            {
                "run": run.name, "dataset": run.dataset.name, "method": run.method.name,
                "shots": run.shots, "seed": run.seed, "state": run.state,
                "settings": run.settings, "folder": str(run.folder),
            }
            for run in runs
        ])  # fmt: skip
        return
    print_table(("run", "action"), ((run.name, STATES[run.state]) for run in runs), empty="")
    states = Counter(run.state for run in runs)
    click.echo(f"{counted(len(runs), 'run')}, {states['complete']} complete.")


def _line(row: "RunRow") -> str:
    from prompt_serve.training.many.report import run_name

    if row.accuracy is None:
        return f"{run_name(row)}: {row.error or 'no images were held out to measure it on'}"
    return f"{run_name(row)}: {row.part} {row.accuracy:.1%}"


def _lines(rows: "Sequence[RunRow]", out: Path) -> Iterable[str]:
    """Yield the table and the places of the files."""
    from prompt_serve.training.many.report import mean_and_std
    from prompt_serve.training.many.results import REPORT, TABLE, table_of

    yield from table_lines(
        ("dataset", "method", "shots", "accuracy (%)", "seeds", "failed"),
        (
            (
                row.dataset,
                row.method,
                "-" if row.shots is None else str(row.shots),
                mean_and_std(row),
                str(row.seeds),
                str(row.failed),
            )
            for row in table_of(rows)
        ),
        right={"shots", "accuracy (%)", "seeds", "failed"},
    )
    yield ""
    yield f"table   {out / TABLE}"
    yield f"report  {out / REPORT}"
