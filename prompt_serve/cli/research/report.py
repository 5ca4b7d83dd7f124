"""``prompt-serve report``: write the results of protocols to one HTML file."""

from pathlib import Path

import click

from prompt_serve.cli.output_file import OutputFile, save
from prompt_serve.cli.user_path import UserPath


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=UserPath())
@click.option(
    "--out", "-o", type=OutputFile(), default=Path("report.html"), show_default=True,
    help="HTML file to write; an existing file is replaced.",
)  # fmt: skip
@click.option(
    "--row", metavar="LABEL",
    help="Row whose predictions are shown (confusion, reliability, confused images), by its label "
    "in the tables. [default: the best by validation accuracy]",
)  # fmt: skip
@click.option(
    "--dataset", "datasets", multiple=True, metavar="NAME",
    help="Dataset for figures that show only one. Can be repeated. [default: the first]",
)  # fmt: skip
@click.option("--title", help="Title of the page.")
def report(
    runs: tuple[Path, ...], out: Path, row: str | None, datasets: tuple[str, ...], title: str | None
) -> None:
    """Write one self-contained HTML file about all RUNs, run folders or results.jsonl files.

    The page opens with a summary and shows accuracy tables, bytes against accuracy, learning
    curves, information density, learned numbers and codebooks, pruned context lengths, and
    predictions. It uses no network and no scripts. Some sections need the files that a run folder
    holds beside its results.jsonl; without them, they name the missing files.

    Example: prompt-serve report runs/base-to-new --out report.html
    """
    from prompt_serve.research.reports.report import TITLE, write_report

    out = save(
        out,
        lambda path: write_report(runs, path, row=row, datasets=datasets, title=title or TITLE),
    )
    click.echo(f"{out}, {out.stat().st_size:,} bytes")
