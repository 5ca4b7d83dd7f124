"""Options that ``prompt-serve protocol`` and ``prompt-serve reproduce`` share."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.engine_options import engine_options
from prompt_serve.cli.facts import Report, json_option
from prompt_serve.cli.learning.image_options import Command, device_of, feature_cache, tower_options
from prompt_serve.cli.learning.train_seeds import parse_seeds
from prompt_serve.cli.output_file import OutputFolder
from prompt_serve.errors import counted

if TYPE_CHECKING:
    from prompt_serve.research.datasets.suite import Suite
    from prompt_serve.research.protocols.comparison import Comparison
    from prompt_serve.research.protocols.experiment import Experiment, Schedule
    from prompt_serve.research.protocols.results import Result

DESCRIBED = (
    ("base-to-new", "Train on half of the classes; test on both halves."),
    ("few-shot", "Train on all classes with few images each."),
    ("cross-dataset", "Train on one dataset; test on all others."),
    ("domain-generalization", "Train on one dataset; test on its domains."),
)


def protocol_options(command: Command) -> Command:
    """Add the options for methods, seeds, datasets, backbone and output."""
    for option in reversed((
        click.option(
            "--methods", default="core", show_default=True, metavar="A,B,...",
            help="Methods to compare, with settings (coop,dip:rank=4,qcoop:bits=1), or a set: "
            "core, text (all methods that prompt the text tower) or image (the image tower).",
        ),
        click.option(
            "--seeds", callback=parse_seeds, default="1,2,3", show_default=True, metavar="1,2,3",
            help="Random seeds to average over.",
        ),
        click.option(
            "--shots", "shots", metavar="16 or 1,2,4", callback=_shots,
            help="Training images per class; a list for few-shot. [default: 16; few-shot: "
            "1,2,4,8,16]",
        ),
        click.option(
            "--datasets", metavar="A,B,...", callback=_names,
            help="Datasets to run; the targets for cross-dataset. [default: all available]",
        ),
        click.option(
            "--source",
            help="Training dataset of cross-dataset and domain-generalization. [default: the "
            "suite's source, or the first dataset]",
        ),
        click.option(
            "--set", "pairs", multiple=True, metavar="NAME=VALUE",
            help="Training setting for all methods, such as epochs=50 or learning_rate=auto; "
            "prompt-serve methods NAME lists them. Can be repeated.",
        ),
        click.option(
            "--backbone", default="embedded", show_default=True,
            help="Frozen CLIP: embedded, embedded-vit, MODEL/TAG such as ViT-B-16/openai, "
            "MODEL/TAG@FILE or MODEL@FILE with a checkpoint, or a folder.",
        ),
        click.option(
            "--out", "-o", type=OutputFolder(), required=True,
            help="Run folder: results.jsonl, and one folder per result with prompt, log and "
            "predictions. Results that it already contains are not computed again.",
        ),
        partial(engine_options, local=True),
        tower_options,
        json_option,
        click.option("--quiet", is_flag=True, help="Print no progress and no tables."),
    )):  # fmt: skip
        command = option(command)
    return command


def _names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",")) if value else ()


def _shots(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    if value is None:
        return ()
    counts = [part.strip() for part in value.split(",")]
    if not all(count.isdecimal() and int(count) for count in counts):
        raise click.BadParameter(f"{value!r} is not a list of positive numbers, as in 1,2,4.")
    return tuple(sorted({int(count) for count in counts}))


def experiment_of(options: Mapping[str, Any], schedule: "Schedule | None" = None) -> "Experiment":
    """Build the experiment that the options describe; it prints each result to standard error."""
    from prompt_serve.research.protocols.experiment import Experiment, equal_schedule
    from prompt_serve.research.protocols.rows import parse_rows, parse_settings
    from prompt_serve.training.clip.backbone import load_backbone
    from prompt_serve.training.progress import Progress

    rows = parse_rows(options["methods"])
    settings = parse_settings(options["pairs"])
    for row in rows:  # reject invalid settings before loading anything
        row.config(settings)
    return Experiment(
        backbone=load_backbone(options["backbone"])
        .decoding_in_full()
        .to(device_of(options["device"])),
        rows=rows,
        seeds=options["seeds"],
        settings=settings,
        schedule=schedule or equal_schedule,
        out=options["out"],
        cache=feature_cache(options),
        workers=options["workers"],
        progress=Progress(quiet=options["quiet"]),
        on_result=_silent if options["quiet"] else _print_result,
    )


def _silent(result: "Result") -> None:
    pass


def _print_result(result: "Result") -> None:
    shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in result.accuracy.items())
    click.echo(
        f"{result.protocol} {result.dataset} {result.label}, {counted(result.shots, 'shot')}, "
        f"seed {result.seed}: {shown}",
        err=True,
    )


def check_available(
    protocol: str, suite: "Suite", options: Mapping[str, Any], *, all_required: bool = False
) -> None:
    """Check, before anything else is loaded, that the datasets are available.

    Args:
        protocol: name of the protocol.
        suite: datasets to run on.
        options: of the command.
        all_required: no dataset of the suite may be missing; False: the tables list the missing.

    Raises:
        click.UsageError: several numbers of shots for a protocol that takes one.
        ConfigInvalid: ``--datasets`` or ``--source`` has names that the suite does not know.
        DatasetMissing: lists everything that is missing, and what to download.
    """
    from prompt_serve.research.protocols.preconditions import check_on_disk

    shots_of(protocol, options)
    check_on_disk(
        suite,
        protocol,
        source=options["source"],
        datasets=options["datasets"],
        all_required=all_required,
    )


def learn(
    protocol: str, suite: "Suite", experiment: "Experiment", options: Mapping[str, Any]
) -> "list[Result]":
    """Run one protocol on a suite; results in the run folder are not computed again."""
    from prompt_serve.research.protocols import protocols
    from prompt_serve.research.protocols.summary import BASE_TO_NEW, FEW_SHOT

    datasets, shots = options["datasets"], shots_of(protocol, options)
    if protocol == FEW_SHOT:
        return protocols.few_shot_learning(suite, experiment, datasets=datasets, shots=shots)
    if protocol == BASE_TO_NEW:
        return protocols.base_to_new(suite, experiment, datasets=datasets, shots=shots[0])
    return protocols.transfer(
        suite,
        experiment,
        [protocol],
        source=options["source"],
        datasets=datasets,
        shots=shots[0],
    )


def shots_of(protocol: str, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the numbers of shots of a protocol.

    Raises:
        click.UsageError: several for a protocol that takes one.
    """
    from prompt_serve.research.protocols import protocols
    from prompt_serve.research.protocols.summary import FEW_SHOT

    given: tuple[int, ...] = options["shots"]
    if protocol == FEW_SHOT:
        return given or protocols.FEW_SHOTS
    if len(given) > 1:
        raise click.UsageError(f"{protocol} takes one number of --shots, not {len(given)}.")
    return given or (protocols.SHOTS,)


def comparisons(
    results: "Sequence[Result]", suite: "Suite", datasets: Sequence[str]
) -> "tuple[Comparison, ...]":
    """Build the tables of the results, with the papers' figures where they exist."""
    from prompt_serve.research.protocols.comparison import compare_with_papers

    return compare_with_papers(results, suite, datasets)


def tables(
    results: "Sequence[Result]", suite: "Suite", datasets: Sequence[str], *, markdown: bool = False
) -> str:
    """Render ``comparisons`` as text or Markdown."""
    from prompt_serve.research.protocols.comparison_tables import as_markdown, as_text

    show = as_markdown if markdown else as_text
    return "\n\n".join(show(table) for table in comparisons(results, suite, datasets))


def print_tables(results: "Sequence[Result]", suite: "Suite", options: Mapping[str, Any]) -> None:
    """Print the tables of the results, or with ``--json`` the same as a document."""
    documents = [table.to_dict() for table in comparisons(results, suite, options["datasets"])]
    text = tables(results, suite, options["datasets"])
    Report(documents, [text]).print(as_json=options["as_json"], quiet=options["quiet"])
