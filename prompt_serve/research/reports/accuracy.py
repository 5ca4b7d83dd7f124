"""Accuracy tables in the papers' format, and accuracy by number of shots."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prompt_serve.errors import counted
from prompt_serve.evaluation_report.markup import percent
from prompt_serve.research.protocols.summary import (
    AVERAGE,
    BASE,
    BASE_TO_NEW,
    FEW_SHOT,
    HARMONIC,
    NEW,
    SOURCE,
    TEST,
    TRANSFER,
    MeanOverSeeds,
    Summary,
    TableRow,
)
from prompt_serve.research.reports.charts import draw, name_of, styles
from prompt_serve.research.reports.overview import title_of
from prompt_serve.research.reports.page import Block, Cell, Chart, ReportTable, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ZERO_SHOT = "zero-shot"  # reference method
NOTHING = Cell(text="–", missing=True)
NOTE = (
    "Top-1 accuracy in percent of test images: mean ± standard deviation over seeds; below it, the "
    "difference from the zero-shot row in points. The best learned mean of each column is marked. "
    "– means not measured."
)


def accuracy_section(summaries: Sequence[Summary]) -> Section:
    """Build the tables of each protocol, suite, backbone and number of shots."""
    blocks: list[Block] = []
    for number, summary in enumerate(summaries):
        for shots in summary.shots:
            blocks += _tables(summary, shots)
        if summary.protocol == FEW_SHOT and len(summary.shots) > 1:
            blocks.append(_by_shots(summary, number))
    return Section(
        anchor="accuracy",
        title="Accuracy",
        after="DIP Tables 2, 9; Quantized Prompt Tables 1, 2; ADAPT Table 1",
        intro=NOTE,
        blocks=blocks,
    )


def headline(summary: Summary) -> str:
    """Return the key of the figure that summarizes a row."""
    if summary.protocol == BASE_TO_NEW:
        return HARMONIC
    return AVERAGE if summary.protocol in TRANSFER else TEST


def headline_rows(summary: Summary, shots: int) -> list[TableRow]:
    """Return one row per label: its average over datasets, or over the targets of a transfer."""
    if summary.protocol in TRANSFER:
        rows = [row for row in summary.rows if row.dataset in summary.datasets]
    else:
        rows = [row for row in summary.rows if row.dataset == AVERAGE]
    return [row for row in rows if row.shots == shots and headline(summary) in row.figures]


def headline_name(summary: Summary) -> str:
    """Describe the headline figure in words, as on an axis."""
    over = f"{len(summary.datasets)} datasets" if len(summary.datasets) > 1 else "one dataset"
    return {
        HARMONIC: f"H of the average base and new accuracy over {over}",
        AVERAGE: "average accuracy over the targets",
        TEST: f"average test accuracy over {over}",
    }[headline(summary)]


def _tables(summary: Summary, shots: int) -> list[Block]:
    title = (
        f"{title_of(summary.protocol, summary.suite, summary.backbone)}, {counted(shots, 'shot')}"
    )
    labels = [
        label for label in summary.labels
        if any(row.label == label and row.shots == shots for row in summary.rows)
    ]  # fmt: skip
    if summary.protocol in TRANSFER:
        return [_transfer(summary, shots, labels, dataset, title) for dataset in summary.datasets]
    if summary.protocol != BASE_TO_NEW:
        return [_by_dataset(summary, shots, labels, TEST, f"{title}: test accuracy")]
    tables: list[Block] = [_averages(summary, shots, labels, f"{title}: averages")]
    for test, name in ((HARMONIC, "H"), (BASE, "base classes"), (NEW, "new classes")):
        tables.append(_by_dataset(summary, shots, labels, test, f"{title}: {name}"))
    return tables


def _averages(summary: Summary, shots: int, labels: Sequence[str], caption: str) -> ReportTable:
    """Build the table of base, new and H of each row, with its size and training time."""
    rows = {label: summary.row(AVERAGE, label, shots) for label in labels}
    columns = [[_figure(rows[label], test) for label in labels] for test in (BASE, NEW, HARMONIC)]
    cells = [_column(column, list(rows.values())) for column in columns]
    return ReportTable(
        caption=caption,
        headers=["", "base", "new", "H", "bytes", "learned numbers", "seconds", "datasets"],
        rows=[
            [label, *(column[index] for column in cells), *_costs(rows[label], summary)]
            for index, label in enumerate(labels)
        ],
        note="H is the harmonic mean of the two averages, not the average of the datasets' H. "
        "Bytes count the learned numbers in the prompt file, seconds the training time of one "
        "prompt; all are means over datasets and seeds.",
    )


def _costs(row: TableRow | None, summary: Summary) -> list[Cell]:
    if row is None:
        return [NOTHING] * 4
    whole = len(row.over) + len(row.missing) or len(summary.datasets)
    return [
        Cell(text=f"{row.payload_bytes:,.0f}", value=row.payload_bytes),
        Cell(text=f"{row.trained_numbers:,.0f}", value=row.trained_numbers),
        Cell(text=f"{row.seconds:,.1f}", value=row.seconds),
        Cell(text=f"{len(row.over)} of {whole}" if row.partial else f"{whole}"),
    ]


def _by_dataset(
    summary: Summary, shots: int, labels: Sequence[str], test: str, caption: str
) -> ReportTable:
    datasets = [*([AVERAGE] if len(summary.datasets) > 1 else []), *summary.datasets]
    columns = []
    for dataset in datasets:
        rows = [summary.row(dataset, label, shots) for label in labels]
        columns.append(_column([_figure(row, test) for row in rows], rows))
    return _table(caption, datasets, labels, columns)


def _transfer(
    summary: Summary, shots: int, labels: Sequence[str], dataset: str, title: str
) -> ReportTable:
    targets = [name for name in summary.test_sets if name not in (SOURCE, AVERAGE)]
    names = [SOURCE, AVERAGE, *targets]
    rows = [summary.row(dataset, label, shots) for label in labels]
    columns = [
        _column([_figure(row, name) for row in rows], rows, of_average=name == AVERAGE)
        for name in names
    ]
    headers = [f"{dataset} (source)", "average of targets", *targets]
    return _table(f"{title}: learned on {dataset}", headers, labels, columns)


def _table(
    caption: str, headers: Sequence[str], labels: Sequence[str], columns: Sequence[Sequence[Cell]]
) -> ReportTable:
    rows: list[list[Cell | str]] = []
    for index, label in enumerate(labels):
        rows.append([label, *(column[index] for column in columns)])
    return ReportTable(caption=caption, headers=["", *headers], rows=rows)


def _figure(row: TableRow | None, test: str) -> MeanOverSeeds | None:
    return None if row is None else row.figures.get(test)


def _column(
    figures: Sequence[MeanOverSeeds | None],
    rows: Sequence[TableRow | None],
    *,
    of_average: bool = True,
) -> list[Cell]:
    """Return the cells of a column; a partial average is shown but never marked as best."""
    known = [
        (figure, row, of_average and row.partial)
        for figure, row in zip(figures, rows, strict=True)
        if figure and row
    ]
    whole = [(figure.mean, row.method) for figure, row, partial in known if not partial]
    reference = next((mean for mean, method in whole if method == ZERO_SHOT), None)
    learned = [mean for mean, method in whole if method != ZERO_SHOT]
    best = max(learned) if len(learned) > 1 else None
    cells = {
        row.label: _cell(figure, row, reference, best, partial=partial)
        for figure, row, partial in known
    }
    return [
        cells[row.label] if figure and row else NOTHING
        for figure, row in zip(figures, rows, strict=True)
    ]


def _cell(
    figure: MeanOverSeeds,
    row: TableRow,
    reference: float | None,
    best: float | None,
    *,
    partial: bool,
) -> Cell:
    learned = row.method != ZERO_SHOT
    detail = ""
    if partial:
        detail = f"without {len(row.missing)}"
    elif learned and reference is not None:
        detail = points(figure.mean - reference)
    spread = f" ± {percent(figure.spread)}" if figure.seeds > 1 else ""
    return Cell(
        text=f"{percent(figure.mean)}{spread}",
        value=figure.mean,
        detail=detail,
        best=learned and not partial and figure.mean == best,
    )


def points(difference: float) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _by_shots(summary: Summary, number: int) -> Chart:
    row_styles = styles(summary.labels)
    lines = {
        label: [
            (row.shots, row.figures[TEST])
            for shots in summary.shots
            if (row := summary.row(AVERAGE, label, shots)) and not row.partial
        ]
        for label in summary.labels
    }

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for label, points in lines.items():
            style = row_styles[label]
            axes.errorbar(
                [shots for shots, _ in points],
                [100 * found.mean for _, found in points],
                yerr=[100 * found.spread for _, found in points],
                color=style.color, linestyle=style.dash, marker=style.mark, markersize=4,
                capsize=2, elinewidth=0.8, label=name_of(label),
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(summary.shots, [str(shots) for shots in summary.shots])
        axes.minorticks_off()
        axes.set_xlabel("training images per class")
        axes.set_ylabel("accuracy (%)")
        figure.legend(loc="outside right upper")

    title = f"{title_of(summary.protocol, summary.suite, summary.backbone)}: accuracy by shots"
    return Chart(
        title=title,
        svg=draw(paint, name=f"shots{number}", width=7.5, height=3.6),
        alt=f"{headline_name(summary)} against training images per class, one line per row",
        caption="Average over datasets; bars are standard deviations over seeds. Rows without "
        "results for all datasets are left out.",
        tables=[
            ReportTable(
                caption=title,
                headers=["", *(counted(shots, "shot") for shots in summary.shots)],
                rows=[
                    [label, *(_point(dict(points).get(shots)) for shots in summary.shots)]
                    for label, points in lines.items()
                ],
            )
        ],
    )


def _point(figure: MeanOverSeeds | None) -> Cell:
    return Cell(text=percent(figure.mean), value=figure.mean) if figure else NOTHING
