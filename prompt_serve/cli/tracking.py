"""Options of ``prompt-serve train`` that log a run in MLflow or TensorBoard."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from prompt_serve.cli.output_file import OutputFolder

if TYPE_CHECKING:
    from prompt_serve.training.tracking.runs import TrackedRuns, Tracker

Command = TypeVar("Command", bound=Callable[..., Any])

PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboardX"}
# Option -> the tracker that it belongs to; None: any.
_OWNERS = {
    "track_uri": "mlflow",
    "track_experiment": "mlflow",
    "track_dir": "tensorboard",
    "track_run": None,
}


def tracking_options(command: Command) -> Command:
    """Add ``--track`` and its options."""
    for option in (
        click.option(
            "--track-run", metavar="NAME",
            help="Name of the run. [default: that of the task]",
        ),
        click.option(
            "--track-dir", type=OutputFolder(),
            help="TensorBoard: folder in which the run gets a folder of its own. [default: runs]",
        ),
        click.option(
            "--track-experiment", metavar="NAME", envvar="MLFLOW_EXPERIMENT_NAME",
            show_envvar=True, default="prompt-serve", show_default=True,
            help="MLflow: experiment, created if there is none.",
        ),
        click.option(
            "--track-uri", metavar="URI", envvar="MLFLOW_TRACKING_URI", show_envvar=True,
            help="MLflow: server (http://...) or database (sqlite:///mlflow.db). [default: "
            "MLflow's own]",
        ),
        click.option(
            "--track", type=click.Choice(list(PACKAGES)),
            help="Log settings, curves, results and the prompt file. The training continues if the "
            "tracker fails.",
        ),
    ):  # fmt: skip
        option(command)
    return command


def tracked_runs(
    options: Mapping[str, Any], name_of: Callable[[int | None], str]
) -> "TrackedRuns | None":
    """Return the runs to log; None without ``--track``.

    Args:
        options: of the command.
        name_of: returns the name of a run by its seed; None where there is one run.

    Raises:
        UsageError: an option of another tracker was given.
        ImportError: the tracker's package is not installed.
    """
    tracker: str | None = options["track"]
    context = click.get_current_context()
    for option, owner in _OWNERS.items():
        given = context.get_parameter_source(option) == ParameterSource.COMMANDLINE
        if given and (tracker is None or owner not in (tracker, None)):
            raise click.UsageError(
                f"--{option.replace('_', '-')} needs --track{f' {owner}' if owner else ''}."
            )
    if tracker is None:
        return None
    importlib.import_module(PACKAGES[tracker])  # before the training, where it is missing
    from prompt_serve.training.tracking.runs import TrackedRuns

    dataset = str(options["dataset"])
    folder = options["track_dir"] or Path("runs")

    def start(name: str) -> "Tracker":
        if tracker == "tensorboard":
            from prompt_serve.training.tracking.tensorboard_run import TensorboardRun

            return TensorboardRun(name, folder=folder, dataset=dataset)
        from prompt_serve.training.tracking.mlflow_run import MlflowRun

        return MlflowRun(
            name,
            uri=options["track_uri"],
            experiment=options["track_experiment"],
            dataset=dataset,
        )

    return TrackedRuns(start, name_of, lambda text: click.echo(f"Warning: {text}", err=True))
