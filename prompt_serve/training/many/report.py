"""The page of all runs: the table of each number of shots, the runs and their errors."""

from collections.abc import Sequence
from pathlib import Path

from prompt_serve.errors import counted
from prompt_serve.evaluation_report.markup import Markup, joined, number, percent, table, tag
from prompt_serve.evaluation_report.page import html_page, write_page
from prompt_serve.evaluation_report.sections import Section
from prompt_serve.training.many.results import RunRow, TableRow, table_of


def write_report(path: Path, title: str, rows: Sequence[RunRow]) -> int:
    """Write the page; equal rows give equal bytes.

    Args:
        path: HTML file; an existing one is replaced.
        title: of the page.
        rows: all runs.

    Returns:
        Size of the file in bytes.
    """
    sections = [
        Section("accuracy", "Accuracy", _accuracy(table_of(rows))),
        Section("details", "Calibration, size and time", _details(table_of(rows))),
        Section("runs", "Runs", _runs(rows)),
    ]
    return write_page(path, html_page(title, sections))


def _accuracy(rows: Sequence[TableRow]) -> Markup:
    """Return a table of datasets and methods for each number of shots."""
    shots = dict.fromkeys(row.shots for row in rows)
    return joined(*(_matrix([row for row in rows if row.shots == k]) for k in shots))


def _matrix(rows: Sequence[TableRow]) -> Markup:
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    cells = {(row.dataset, row.method): row for row in rows}
    shots = rows[0].shots
    images = "" if shots is None else f" with {counted(shots, 'training image')} per class"
    parts = sorted({row.part for row in rows if row.part})
    return table(
        f"Accuracy (%){images}",
        ["dataset", *methods],
        [[name, *(_mean_cell(cells[name, method]) for method in methods)] for name in datasets],
        note=f"Mean over the seeds ± standard deviation, on images of part {', '.join(parts)}."
        if parts
        else None,
    )


def _mean_cell(row: TableRow) -> Markup:
    missing = f"{counted(row.failed, 'run')} failed" if row.failed else None
    mean = "–" if row.accuracy is None else number(row.accuracy, mean_and_std(row))
    return tag("td", mean, tag("small", missing) if missing else None)


def mean_and_std(row: TableRow) -> str:
    """Return ``91.2 ± 0.4``, in percent; without a deviation where there is one seed."""
    if row.accuracy_std is None:
        return percent(row.accuracy)
    return f"{percent(row.accuracy)} ± {percent(row.accuracy_std)}"


def _details(rows: Sequence[TableRow]) -> Markup:
    return table(
        "Means over the seeds",
        ["dataset", "method", "shots", "part", "seeds", "accuracy (%)", "zero-shot (%)",
         "calibration error (%)", "payload (bytes)", "time (s)"],
        [
            [
                row.dataset,
                row.method,
                "–" if row.shots is None else str(row.shots),
                row.part or "–",
                str(row.seeds),
                mean_and_std(row),
                percent(row.zero_shot_accuracy),
                percent(row.calibration_error),
                "–" if row.payload_bytes is None else f"{row.payload_bytes:,.0f}",
                "–" if row.seconds is None else f"{row.seconds:,.1f}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def _runs(rows: Sequence[RunRow]) -> Markup:
    return table(
        "All runs",
        ["run", "accuracy (%)", "time (s)", tag("th", "prompt file, or error", class_="words")],
        [
            [
                run_name(row),
                percent(row.accuracy),
                "–" if row.seconds is None else f"{row.seconds:,.1f}",
                tag("td", row.prompt or row.error, class_="words"),
            ]
            for row in rows
        ],
    )


def run_name(row: RunRow) -> str:
    """Return dataset, method, shots and seed in words."""
    shots = "" if row.shots is None else f", {counted(row.shots, 'shot')}"
    return f"{row.dataset}, {row.method}{shots}, seed {row.seed}"
