"""Report on run folders as one self-contained HTML file: no network, no scripts, no other files."""

from collections.abc import Sequence
from pathlib import Path

from prompt_serve.errors import counted
from prompt_serve.research.protocols.summary import summarize
from prompt_serve.research.reports.accuracy import accuracy_section
from prompt_serve.research.reports.context_lengths import context_lengths_section
from prompt_serve.research.reports.curves import curves_section
from prompt_serve.research.reports.density import density_section
from prompt_serve.research.reports.key_results import summary_section
from prompt_serve.research.reports.overview import PROTOCOLS, overview_section
from prompt_serve.research.reports.page import render_page
from prompt_serve.research.reports.payload import payload_section
from prompt_serve.research.reports.predictions import predictions_section
from prompt_serve.research.reports.report_options import ReportOptions
from prompt_serve.research.reports.stored_runs import (
    StoredRun,
    by_comparison,
    read_runs,
    without_repeated_prompts,
)
from prompt_serve.research.reports.thumbnails import Thumbnails
from prompt_serve.research.reports.weights import weights_section

TITLE = "prompt-serve: report"


def write_report(
    sources: Sequence[Path],
    out: Path,
    *,
    row: str | None = None,
    datasets: Sequence[str] = (),
    title: str = TITLE,
) -> int:
    """Write a report on run folders or results files and return its size in bytes.

    Equal sources give an equal file.

    Args:
        sources: run folders, or ``results.jsonl`` files.
        out: HTML file; an existing one is replaced.
        row: label whose predictions are shown; None: the best by validation accuracy.
        datasets: datasets for figures that show one dataset; empty: the first.
        title: title of the page.

    Raises:
        ResultsInvalid: a source is missing, or a file is invalid.
        ConfigInvalid: the row or a dataset is unknown.
    """
    runs = read_runs(sources)
    options = ReportOptions(row=row, datasets=tuple(datasets))
    options.check(runs)
    html = report_html(runs, options, title=title)
    # Lone surrogates cannot be encoded; the page has replaced them in its text.
    data = html.encode("utf-8", "replace")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(data)
    return len(data)


def report_html(runs: Sequence[StoredRun], options: ReportOptions, *, title: str = TITLE) -> str:
    """Render the page."""
    summaries = summarize(run.result for run in runs)
    learned = without_repeated_prompts(runs)
    sections = [
        summary_section(runs, summaries),
        overview_section(runs, summaries),
        accuracy_section(summaries),
        payload_section(summaries),
        curves_section(learned),
        density_section(runs),
        weights_section(learned, options),
        context_lengths_section(learned, options),
        predictions_section(runs, options, Thumbnails()),
    ]
    return render_page(title, _summary(runs), sections)


def _summary(runs: Sequence[StoredRun]) -> str:
    protocols = dict.fromkeys(PROTOCOLS.get(key[0], key[0]) for key in by_comparison(runs))
    datasets = {run.result.dataset for run in runs}
    rows = {run.result.label for run in runs}
    return (
        f"{counted(len(runs), 'prompt')}: {', '.join(protocols)}; "
        f"{counted(len(datasets), 'dataset')}"
        f", {counted(len(rows), 'row')}."
    )
