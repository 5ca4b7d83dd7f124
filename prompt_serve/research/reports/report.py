"""From run folders to one HTML file that needs nothing else: no network, no scripts, no images
beside it."""

from collections.abc import Sequence
from pathlib import Path

from prompt_serve.research.protocols.summary import summarize
from prompt_serve.research.reports.accuracy import accuracy
from prompt_serve.research.reports.context_lengths import lengths
from prompt_serve.research.reports.curves import curves
from prompt_serve.research.reports.density import density
from prompt_serve.research.reports.overview import PROTOCOLS, overview
from prompt_serve.research.reports.page import render_page
from prompt_serve.research.reports.payload import sizes
from prompt_serve.research.reports.predictions import answered
from prompt_serve.research.reports.report_options import Choice
from prompt_serve.research.reports.stored_runs import (
    StoredRun,
    by_comparison,
    learned_once,
    read_runs,
)
from prompt_serve.research.reports.thumbnails import Thumbnails
from prompt_serve.research.reports.weights import weights

TITLE = "prompt-serve: report"


def write_report(
    sources: Sequence[Path],
    out: Path,
    *,
    row: str | None = None,
    datasets: Sequence[str] = (),
    title: str = TITLE,
) -> int:
    """Write a report of some run folders or results files; returns its size in bytes.

    Equal sources give an equal file.

    Args:
        sources: run folders, or ``results.jsonl`` files.
        out: HTML file; what was there is replaced.
        row: label whose answers are shown; None: the best by validation accuracy.
        datasets: of figures that show one dataset; none: the first.
        title: of the page.

    Raises:
        ResultsInvalid: a source is missing, or a file is none of ours.
        ConfigInvalid: there is no such row or dataset.
    """
    runs = read_runs(sources)
    choice = Choice(row=row, datasets=tuple(datasets))
    choice.check(runs)
    html = report_html(runs, choice, title=title)
    # Half of a surrogate pair has no bytes; the page replaces them in all text of its own.
    data = html.encode("utf-8", "replace")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(data)
    return len(data)


def report_html(runs: Sequence[StoredRun], choice: Choice, *, title: str = TITLE) -> str:
    """The page of some runs."""
    summaries = summarize(run.result for run in runs)
    learned = learned_once(runs)
    sections = [
        overview(runs, summaries),
        accuracy(summaries),
        sizes(summaries),
        curves(learned),
        density(runs),
        weights(learned, choice),
        lengths(learned, choice),
        answered(runs, choice, Thumbnails()),
    ]
    return render_page(title, _summary(runs), sections)


def _summary(runs: Sequence[StoredRun]) -> str:
    protocols = dict.fromkeys(PROTOCOLS.get(key[0], key[0]) for key in by_comparison(runs))
    datasets = {run.result.dataset for run in runs}
    rows = {run.result.label for run in runs}
    return (
        f"{len(runs):,} learned prompts: {', '.join(protocols)}; {_count(len(datasets), 'dataset')}"
        f", {_count(len(rows), 'row')}."
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
