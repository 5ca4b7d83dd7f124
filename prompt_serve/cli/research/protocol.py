"""``prompt-serve protocol``: the papers' protocols on user datasets."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_serve.cli.engine_options import Engine
from prompt_serve.cli.learning.image_options import pairs
from prompt_serve.cli.research.protocol_options import (
    DESCRIBED,
    check_available,
    experiment_of,
    print_tables,
    protocol_options,
)
from prompt_serve.cli.research.side_by_side import Source, run_protocol
from prompt_serve.cli.user_path import UserPath
from prompt_serve.text_files import expand_user

if TYPE_CHECKING:
    from prompt_serve.research.datasets.suite import Suite


@click.group()
def protocol() -> None:
    """Evaluate methods by the papers' protocols on your own datasets.

    DATASETS have the formats of prompt-serve train, each with test images. Test images are never
    used for training or selection.

    \b
    prompt-serve protocol base-to-new pets/ flowers/ --methods coop,dip --out runs/mine
    prompt-serve report runs/mine --out report.html
    """


EXAMPLES = {
    "base-to-new": "pets/ flowers/",
    "few-shot": "pets/ flowers/ --shots 1,4,16",
    "cross-dataset": "pets/ flowers/ --source pets",
    "domain-generalization": "pets/ --domain sketch=pet-sketches/",
}


def suite_of(options: Mapping[str, Any]) -> "Suite":
    """Return the datasets of the command."""
    from prompt_serve.research.datasets.user_datasets import folder_suite

    folders = {name: expand_user(folder) for name, folder in options["domains"].items()}
    return folder_suite(options["sources"], source=options["source"], domains=folders)


def schedule_of(options: Mapping[str, Any]) -> None:
    """Return no schedule: every row has the same settings."""


def _command(name: str, summary: str) -> click.Command:
    example = f"prompt-serve protocol {name} {EXAMPLES[name]} --methods coop,dip --out runs/mine"

    @click.command(
        name,
        help=f"{summary}\n\nDATASETS are folders, tables or split files.\n\nExample: {example}",
    )
    @click.argument("sources", metavar="DATASETS...", nargs=-1, required=True,
                    type=UserPath())  # fmt: skip
    @click.option(
        "--domain", "domains", multiple=True, metavar="NAME=DATASET",
        callback=pairs("NAME=DATASET, as in sketch=sketches/"),
        help="Domain for domain-generalization: test images of the source's classes from another "
        "distribution, such as sketches. Can be repeated.",
    )  # fmt: skip
    @protocol_options
    def command(sources: tuple[Path, ...], domains: dict[str, str], **options: Any) -> None:
        engine = Engine.of(options, like_local=True)
        options |= {"sources": sources, "domains": domains}
        suite = suite_of(options)
        check_available(name, suite, options, all_required=True)
        source = Source(suite=suite_of, schedule=schedule_of)
        results = run_protocol(name, suite, experiment_of(options), options, engine, source)
        print_tables(results, suite, options)

    return command


for _name, _summary in DESCRIBED:
    protocol.add_command(_command(_name, _summary))
