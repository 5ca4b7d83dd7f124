"""``prompt-serve report``: one HTML file of what protocols gave."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True,
    help="HTML file to write; what was there is replaced.",
)  # fmt: skip
@click.option(
    "--row", metavar="LABEL",
    help="Row whose answers are shown (confusion, reliability, confused images), as it is called "
    "in the tables. [default: the best by validation accuracy]",
)  # fmt: skip
@click.option(
    "--dataset", "datasets", multiple=True, metavar="NAME",
    help="Dataset of the figures that show one; give it again for more. "
    "[default: the first there is]",
)  # fmt: skip
@click.option("--title", help="Title of the page.")
def report(
    runs: tuple[Path, ...], out: Path, row: str | None, datasets: tuple[str, ...], title: str | None
) -> None:
    """Write one self-contained HTML file about each RUN, a run folder or its results.jsonl.

    It shows accuracy tables, bytes against accuracy, learning curves, the density of information,
    learned numbers and their codebooks, pruned context lengths, and what was answered. It needs no
    network and no scripts. Figures want the files that a run folder keeps beside its
    results.jsonl; without them, a line says what is missing.

    Example: prompt-serve report runs/base-to-new --out report.html
    """
    from prompt_serve.research.reports.report import TITLE, write_report

    if out.is_dir():
        raise click.BadParameter(f"{out} is a folder; name a file in it.")
    size = write_report(runs, out, row=row, datasets=datasets, title=title or TITLE)
    click.echo(f"{out}, {size:,} bytes")
