"""``prompt-serve report``: write the results of protocols to one HTML file."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True,
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

    if out.is_dir():
        raise click.BadParameter(f"{out} is a folder; name a file in it.")
    size = write_report(runs, out, row=row, datasets=datasets, title=title or TITLE)
    click.echo(f"{out}, {size:,} bytes")
