"""``prompt-serve reproduce``: run the papers' benchmarks and compare with their figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.engine_options import Engine
from prompt_serve.cli.output_file import OutputFile, save
from prompt_serve.cli.research.data import root_option
from prompt_serve.cli.research.protocol_options import (
    DESCRIBED,
    check_available,
    experiment_of,
    print_tables,
    protocol_options,
    tables,
)
from prompt_serve.cli.research.side_by_side import Source, run_protocol
from prompt_serve.cli.user_path import UserPath
from prompt_serve.files import atomic_file

if TYPE_CHECKING:
    from prompt_serve.research.datasets.suite import Suite
    from prompt_serve.research.protocols.experiment import Schedule


@click.command()
@click.argument("protocol", type=click.Choice([name for name, _ in DESCRIBED]))
@click.option(
    "--bench", type=click.Choice(["papers", "icon", "icon-sample"]), default="papers",
    show_default=True,
    help="Datasets. papers: the papers' 11 datasets, from --datasets-root. icon: IconBench, built "
    "by prompt-serve data iconbench. icon-sample: a few hundred drawings that ship with the "
    "package.",
)  # fmt: skip
@root_option
@click.option(
    "--icon-folder", type=UserPath(),
    help="Folder of IconBench. [default: the default of prompt-serve data iconbench]",
)  # fmt: skip
@click.option(
    "--templates", type=click.Choice(["coop", "prograd", "kgcoop"]), default="coop",
    show_default=True,
    help="Set of hand-written sentences for the zero-shot row on the papers' datasets.",
)  # fmt: skip
@click.option(
    "--schedule", type=click.Choice(["papers", "equal"]),
    help="Training schedule. papers: epochs, batch sizes and learning rates of each paper. equal: "
    "the same for every row. [default: papers for --bench papers, otherwise equal]",
)  # fmt: skip
@protocol_options
@click.option("--markdown", type=OutputFile(), help="Markdown file to write the tables to.")
def reproduce(protocol: str, **options: Any) -> None:
    """Reproduce the papers' benchmarks.

    Runs a PROTOCOL and prints the papers' figures beside ours. Datasets that are not on disk are
    listed as missing, never left out silently.

    \b
    prompt-serve reproduce base-to-new --datasets-root /data --backbone ViT-B-16/openai \\
        --methods coop,dip,qcoop:bits=1 --out runs/papers
    prompt-serve reproduce base-to-new --bench icon --methods text --out runs/icon
    """
    engine = Engine.of(options, like_local=True)
    suite = suite_of(options)
    check_available(protocol, suite, options)
    experiment = experiment_of(options, schedule_of(options))
    source = Source(suite=suite_of, schedule=schedule_of)
    results = run_protocol(protocol, suite, experiment, options, engine, source)
    if options["markdown"]:
        text = tables(results, suite, options["datasets"], markdown=True)
        save(options["markdown"], lambda path: _write_text(path, f"{text}\n"))
    print_tables(results, suite, options)


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def suite_of(options: Mapping[str, Any]) -> "Suite":
    """Return the datasets of the command."""
    if options["bench"] == "icon":
        from prompt_serve.research.iconbench.suite import icon_suite

        return icon_suite(options["icon_folder"])
    if options["bench"] == "icon-sample":
        from prompt_serve.research.iconbench.sample import sample_suite

        return sample_suite()
    from prompt_serve.research.datasets.papers import papers_suite

    return papers_suite(Path(options["root"]), templates=options["templates"])


def schedule_of(options: Mapping[str, Any]) -> "Schedule":
    """Return the training schedule of the command."""
    from prompt_serve.research.protocols.experiment import equal_schedule
    from prompt_serve.research.protocols.icon_schedule import icon_schedule
    from prompt_serve.research.protocols.schedules import paper_schedule

    icon = options["bench"] != "papers"
    if (options["schedule"] or ("equal" if icon else "papers")) == "papers":
        return paper_schedule
    return icon_schedule if icon else equal_schedule
