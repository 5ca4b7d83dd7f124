"""Pareto frontier of bytes against accuracy: candidates of ``select_method`` as table or plot."""

import csv
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_serve.errors import ConfigInvalid, DependencyMissing
from prompt_serve.training.selection.by_validation import Candidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    "method",
    "settings",
    "bytes",
    "val_accuracy",
    "val_loss",
    "learning_rate",
    "seconds",
    "on_frontier",
    "chosen",
    "skipped",
)
TABLES, PLOTS = (".tsv", ".json"), (".svg", ".png")
BLUE, ORANGE, GRAY = "#2f6db3", "#d1641a", "#8a8f98"  # distinguishable with any color vision


def write_frontier(rows: Sequence[Candidate], path: Path) -> list[Path]:
    """Write a table (.tsv, .json) or a plot (.svg, .png); to a folder: .tsv, .json and .svg.

    Returns:
        The files written.

    Raises:
        ConfigInvalid: the path has another suffix.
    """
    suffix = path.suffix.lower()
    if not suffix or path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        files = [path / f"frontier{kind}" for kind in (".tsv", ".json", ".svg")]
        return [written for file in files for written in write_frontier(rows, file)]
    check_frontier_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".tsv":
        path.write_text(frontier_tsv(rows), encoding="utf-8")
    elif suffix == ".json":
        document = [row.to_dict() for row in rows]
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    else:
        plot_frontier(rows, path)
    return [path]


def check_frontier_path(path: Path) -> None:
    """Check before training that ``write_frontier`` can write ``path``.

    Raises:
        ConfigInvalid: the suffix is unknown.
        DependencyMissing: it includes a plot, and matplotlib is not installed.
    """
    if path.suffix and path.suffix.lower() not in (*TABLES, *PLOTS) and not path.is_dir():
        raise ConfigInvalid(
            f"{path} ends in {path.suffix!r}; the frontier is written as a table "
            f"({', '.join(TABLES)}), as a plot ({', '.join(PLOTS)}), or into a folder."
        )
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix not in TABLES and importlib.util.find_spec("matplotlib") is None:
        raise DependencyMissing(
            "The plot of the frontier needs matplotlib: pip install 'prompt-serve[research]'. "
            "A table needs nothing: --frontier frontier.tsv",
            package="matplotlib",
            extra="research",
        )


def frontier_tsv(rows: Sequence[Candidate]) -> str:
    """Return a tab-separated table with a line per candidate; unknown values are empty."""
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        table.writerow(
            [
                row.method,
                " ".join(f"{name}={value}" for name, value in row.settings.items()),
                "" if row.size_bytes is None else row.size_bytes,
                "" if row.val_accuracy is None else f"{row.val_accuracy:.4f}",
                "" if row.val_loss is None else f"{row.val_loss:.4f}",
                "" if row.learning_rate is None else f"{row.learning_rate:g}",
                f"{row.seconds:.1f}",
                "yes" if row.on_frontier else "no",
                "yes" if row.chosen else "no",
                row.skipped.partition("\n")[0],
            ]
        )
    return text.getvalue()


def plot_frontier(rows: Sequence[Candidate], path: Path) -> None:
    """Plot bytes (logarithmic) against validation accuracy, with the Pareto frontier as a line.

    Zero-shot has 0 bytes, which a logarithmic axis cannot show: it is a dashed line.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    measured = [row for row in rows if row.val_accuracy is not None and not row.skipped]
    learned = [row for row in measured if row.size_bytes]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for row in measured:
        if not row.size_bytes:
            percent = 100 * (row.val_accuracy or 0.0)
            axes.axhline(percent, color=GRAY, linestyle="--", linewidth=1)
            axes.annotate(
                f"{row.label}, 0 bytes{' (chosen)' if row.chosen else ''}",
                (1.0, percent), (-4, 4), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", fontsize=9, color=GRAY,
            )  # fmt: skip
    if learned:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        _draw_line([row for row in learned if row.on_frontier], max(map(_size, learned)), axes)
        _draw_points(learned, axes)
    axes.set_xlabel("bytes of learned numbers")
    axes.set_ylabel("accuracy on validation images (%)")
    axes.grid(visible=True, which="major", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.18, y=0.14)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    # Without a date, equal rows give an equal file.
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _size(row: Candidate) -> int:
    return row.size_bytes or 0


def _percent(row: Candidate) -> float:
    return 100 * (row.val_accuracy or 0.0)


def _draw_line(leading: Sequence[Candidate], largest: int, axes: "Axes") -> None:
    """Draw the frontier as a step line, up to the largest size."""
    if not leading:
        return
    sizes, heights = [_size(row) for row in leading], [_percent(row) for row in leading]
    axes.plot(
        [*sizes, largest],
        [*heights, heights[-1]],
        drawstyle="steps-post",
        color=BLUE,
        linewidth=1.6,
    )


def _draw_points(learned: Sequence[Candidate], axes: "Axes") -> None:
    """Draw points with labels; candidates at the same point share a label."""
    points: dict[tuple[int, float], list[Candidate]] = {}
    for row in learned:
        points.setdefault((_size(row), _percent(row)), []).append(row)
    for point, rows in points.items():
        chosen = any(row.chosen for row in rows)
        leading = any(row.on_frontier for row in rows)
        color = ORANGE if chosen else BLUE if leading else GRAY
        axes.plot(*point, "o", color=color, markersize=9 if chosen else 6, zorder=3)
        axes.annotate(
            ", ".join(row.label for row in rows) + (" (chosen)" if chosen else ""),
            point, (-5, 7) if leading else (6, -12), textcoords="offset points",
            ha="right" if leading else "left",
            fontsize=8, color="black" if chosen or leading else GRAY,
        )  # fmt: skip
