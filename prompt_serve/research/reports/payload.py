"""Accuracy against bytes of learned numbers, with the Pareto frontier."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prompt_serve.errors import counted
from prompt_serve.evaluation_report.markup import percent
from prompt_serve.research.protocols.summary import Summary, TableRow
from prompt_serve.research.reports.accuracy import headline, headline_name, headline_rows
from prompt_serve.research.reports.charts import GRAY, INK, PALE, Style, draw, name_of, styles
from prompt_serve.research.reports.overview import title_of
from prompt_serve.research.reports.page import Block, Cell, Chart, ReportTable, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

WITH_SPREAD = 12  # maximum number of rows with error bars; more would hide the points
# Offsets of a label from its point, in points; the first free one is used.
PLACES = [
    (dx * far, dy * far) for far in (1, 2, 3.2, 4.6)
    for dx, dy in ((6, 6), (6, -11), (-6, 6), (-6, -11), (0, 11), (0, -16))
]  # fmt: skip


def payload_section(summaries: Sequence[Summary]) -> Section:
    """Build a plot for each table with at least two rows that store learned numbers."""
    blocks: list[Block] = []
    for number, summary in enumerate(summaries):
        shots = summary.shots[-1]
        rows = [row for row in headline_rows(summary, shots) if not row.partial]
        if sum(row.payload_bytes > 0 for row in rows) > 1:
            blocks.append(_chart(summary, rows, shots, number))
    return Section(
        anchor="bytes",
        title="Bytes against accuracy",
        after="Quantized Prompt Table 1; DIP Table 2",
        blocks=blocks,
        missing=""
        if blocks
        else "Left out: this section needs at least two learned rows with all datasets.",
    )


def frontier(rows: Sequence[TableRow], figure: str) -> list[TableRow]:
    """Return the rows that no row with as few bytes outperforms, by ascending bytes."""
    leading: list[TableRow] = []
    for row in sorted(rows, key=lambda row: (row.payload_bytes, -row.figures[figure].mean)):
        if not leading or row.figures[figure].mean > leading[-1].figures[figure].mean:
            leading.append(row)
    return leading


def _chart(summary: Summary, rows: Sequence[TableRow], shots: int, number: int) -> Chart:
    figure_name = headline(summary)
    row_styles = styles(summary.labels)
    learned = [row for row in rows if row.payload_bytes]
    leading = frontier(learned, figure_name)
    few = len(learned) <= WITH_SPREAD
    spread = ", with the standard deviation over seeds" if few else ""

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.set_ylabel(f"{'H' if figure_name == 'H' else 'accuracy'} (%)")
        _points(figure, axes, rows, figure_name, row_styles, leading)

    title = (
        f"{title_of(summary.protocol, summary.suite, summary.backbone)}, {counted(shots, 'shot')}"
    )
    return Chart(
        title=title,
        svg=draw(paint, name=f"bytes{number}", width=8.8, height=3.6 + 0.06 * len(rows)),
        alt=f"{headline_name(summary)} against bytes of learned numbers, logarithmic, one point "
        f"per row; on the frontier: {', '.join(row.label for row in leading)}",
        caption=f"Vertical axis: {headline_name(summary)}, in percent{spread}. Horizontal axis: "
        "bytes of learned numbers in the prompt file (logarithmic), mean over runs. The line is "
        "the Pareto frontier: no row with as few bytes is better. Accuracy is on test images, so "
        "do not select a method by this plot.",
        tables=[
            ReportTable(
                caption=title,
                headers=["", "bytes", f"{figure_name} (%)", "± over seeds", "on the frontier"],
                rows=[
                    [
                        row.label,
                        Cell(text=f"{row.payload_bytes:,.0f}", value=row.payload_bytes),
                        Cell(
                            text=percent(row.figures[figure_name].mean, 2),
                            value=row.figures[figure_name].mean,
                        ),
                        percent(row.figures[figure_name].spread, 2)
                        if row.figures[figure_name].seeds > 1
                        else "–",
                        "yes" if row in leading else "",
                    ]
                    for row in sorted(rows, key=lambda row: row.payload_bytes)
                ],
            )
        ],
    )


def _points(
    figure: "Figure",
    axes: "Axes",
    rows: Sequence[TableRow],
    name: str,
    row_styles: dict[str, Style],
    leading: Sequence[TableRow],
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    learned = [row for row in rows if row.payload_bytes]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes of learned numbers")
    axes.margins(x=0.16, y=0.16)
    right = max(row.payload_bytes for row in learned)
    axes.plot(
        [*(row.payload_bytes for row in leading), right],
        [*(100 * row.figures[name].mean for row in leading), 100 * leading[-1].figures[name].mean],
        drawstyle="steps-post", color=PALE, linewidth=2.2, zorder=1,
    )  # fmt: skip
    for row in rows:
        mean, style = 100 * row.figures[name].mean, row_styles[row.label]
        if not row.payload_bytes:
            axes.axhline(mean, color=GRAY, linestyle="--", linewidth=1)
            axes.annotate(
                f"{name_of(row.label)}, 0 bytes", (1.0, mean), (-2, 3), ha="right", fontsize=7,
                xycoords=("axes fraction", "data"), textcoords="offset points", color=GRAY,
            )  # fmt: skip
            continue
        if len(learned) <= WITH_SPREAD:
            axes.errorbar(
                row.payload_bytes, mean, yerr=100 * row.figures[name].spread, color=style.color,
                elinewidth=0.7, capsize=2, alpha=0.5, zorder=2,
            )  # fmt: skip
        axes.plot(
            row.payload_bytes, mean, style.mark, color=style.color, markersize=5.5, zorder=3,
            markeredgewidth=0,
        )  # fmt: skip
    _label(
        figure,
        axes,
        [(row.payload_bytes, 100 * row.figures[name].mean, row.label) for row in learned],
    )


def _label(figure: "Figure", axes: "Axes", points: Sequence[tuple[float, float, str]]) -> None:
    """Label the points without overlaps; a distant label gets a line to its point."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels must not move the axes
    spots = axes.transData.transform([(x, y) for x, y, _ in points])
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
    inside = axes.get_window_extent()
    for x, y, label in sorted(points, key=lambda point: -point[1]):
        best = math.inf, PLACES[0]
        for place in PLACES:
            text = _annotation(axes, x, y, label, place)
            box = text.get_window_extent()
            text.remove()
            over = sum(_overlap(box, other) for other in taken)
            over += box.width * box.height - _overlap(box, inside)
            if over < best[0] - 1e-9:
                best = over, place
            if over <= 0:
                break
        text = _annotation(axes, x, y, label, best[1])
        taken.append(text.get_window_extent())


def _annotation(
    axes: "Axes", x: float, y: float, label: str, place: tuple[float, float]
) -> "Annotation":
    far = abs(place[0]) > 7 or abs(place[1]) > 17
    return axes.annotate(
        name_of(label), (x, y), place, textcoords="offset points", fontsize=7, color=INK,
        ha="left" if place[0] > 0 else "right" if place[0] < 0 else "center",
        arrowprops={"arrowstyle": "-", "color": GRAY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        if far
        else None,
    )  # fmt: skip


def _overlap(one: "Bbox", other: "Bbox") -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0.0, width) * max(0.0, height))
