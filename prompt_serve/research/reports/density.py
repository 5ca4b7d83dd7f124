"""Information density (ID_k) of finished runs against accuracy on new classes.

DIP's Figure 1 follows single runs over training. This section pools finished runs of several
methods, so it describes the runs and does not test the paper's claim.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prompt_serve.evaluation_report.markup import percent
from prompt_serve.research.protocols.summary import BASE_TO_NEW, NEW
from prompt_serve.research.reports.charts import Style, draw, name_of, panels, styles
from prompt_serve.research.reports.overview import title_of
from prompt_serve.research.reports.page import Block, Cell, Chart, ReportTable, Section
from prompt_serve.research.reports.stored_runs import StoredRun, by_comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 4  # minimum number of points for a correlation
POOLED, WITHIN = "all runs", "all runs, each less the mean of its dataset"


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's rank correlation."""

    rho: float
    p: float  # two-sided, assuming independent points
    points: int


@dataclass(frozen=True, kw_only=True)
class RunPoint:
    """Information density and accuracy of one run."""

    dataset: str
    label: str
    seed: int
    density: float  # ID_k
    accuracy: float  # on new classes


def density_section(runs: Sequence[StoredRun]) -> Section:
    """Build a chart for each base-to-new table."""
    blocks: list[Block] = []
    for number, (key, group) in enumerate(by_comparison(runs).items()):
        if key[0] == BASE_TO_NEW:
            depths = [len(run.result.idk) for run in group if run.result.idk]
            ks = range(1, max(2, min(depths, default=0)))  # ID_k of the largest k is always 1
            if len(run_points(group, 1)) >= LEAST:
                blocks.append(_chart(group, ks, title_of(*key), number))
    return Section(
        anchor="density",
        title="Information density and accuracy on new classes",
        after="compare DIP Figure 1",
        intro="ID_k is the sum of the k largest singular values of the learned vectors divided by "
        "the sum of all, after the last epoch; near 1, a few directions hold nearly all of it. "
        "This is not a test of the paper's claim, because DIP follows one run over training "
        "(ρ above 0.9 on two datasets), while each point here is a finished run and the points "
        "belong to different methods.",
        blocks=blocks,
        missing=""
        if blocks
        else f"Left out: this section needs at least {LEAST} base-to-new runs that learned "
        "vectors.",
    )


def run_points(runs: Sequence[StoredRun], k: int) -> list[RunPoint]:
    """Return one point per run that has ID_k and accuracy on new classes."""
    results = [run.result for run in runs]
    return [
        RunPoint(dataset=r.dataset, label=r.label, seed=r.seed, density=r.idk[k - 1],
            accuracy=r.accuracy[NEW])
        for r in results
        if len(r.idk) >= k and NEW in r.accuracy
    ]  # fmt: skip


def spearman(points: Sequence[RunPoint]) -> Correlation | None:
    """Return Spearman's rho; None for too few points or if one variable is constant."""
    from scipy.stats import spearmanr

    x, y = [point.density for point in points], [point.accuracy for point in points]
    if len(points) < LEAST or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    found = spearmanr(x, y)
    return Correlation(rho=float(found.statistic), p=float(found.pvalue), points=len(points))


def correlations(points: Sequence[RunPoint]) -> dict[str, Correlation | None]:
    """Return the correlations of all runs, within datasets, and of each dataset."""
    datasets = list(dict.fromkeys(point.dataset for point in points))
    found = {POOLED: spearman(points)}
    if len(datasets) > 1:
        found[WITHIN] = spearman(centered(points))
        found |= {name: spearman([d for d in points if d.dataset == name]) for name in datasets}
    return found


def centered(points: Sequence[RunPoint]) -> list[RunPoint]:
    """Subtract the mean of its dataset from each point."""
    moved = []
    for name in dict.fromkeys(point.dataset for point in points):
        selected = [point for point in points if point.dataset == name]
        density = math.fsum(point.density for point in selected) / len(selected)
        accuracy = math.fsum(point.accuracy for point in selected) / len(selected)
        # Rounded so that values equal up to the last bit keep equal ranks.
        moved += [
            RunPoint(dataset=name, label=point.label, seed=point.seed,
                density=round(point.density - density, 12),
                accuracy=round(point.accuracy - accuracy, 12))
            for point in selected
        ]  # fmt: skip
    return moved


def _chart(runs: Sequence[StoredRun], ks: Sequence[int], title: str, number: int) -> Chart:
    row_styles = styles(run.result.label for run in runs)
    points = run_points(runs, 1)
    several = len({point.dataset for point in points}) > 1
    found = {k: correlations(run_points(runs, k)) for k in ks}

    def paint(figure: "Figure") -> None:
        left, *rest = panels(figure, 2 if several else 1, 2 if several else 1)
        _scatter(left, points, row_styles)
        left.set(xlabel="ID_1", ylabel="accuracy on new classes (%)")
        left.set_title(_described(found[1], POOLED))
        for axes in rest:
            _scatter(axes, centered(points), row_styles)
            axes.set(
                xlabel="ID_1, less its dataset's mean",
                ylabel="accuracy, less its dataset's mean (points)",
                title=_described(found[1], WITHIN, "within datasets"),
            )
        handles = {str(line.get_label()): line for line in left.get_lines()}
        figure.legend(handles.values(), list(handles), loc="outside lower center", ncols=5)

    return Chart(
        title=title,
        svg=draw(
            paint,
            name=f"density{number}",
            width=9.6 if several else 6.4,
            height=3.3 + 0.16 * -(-len({point.label for point in points}) // 5),
        ),
        alt=f"accuracy on new classes against ID_1, one point for each of {len(points)} runs; "
        f"{_described(found[1], POOLED)}",
        caption="One point per run. Datasets differ in difficulty and methods in ID_k by "
        "construction, and both shift the axes, so a correlation over all runs may have no other "
        "cause. The right panel and the table show what remains within datasets. Runs that differ "
        "only in their seed count as separate points, so p is too small.",
        tables=[_table(found, title), _points_table(points, title)],
    )


def _scatter(axes: "Axes", points: Sequence[RunPoint], row_styles: Mapping[str, Style]) -> None:
    for label in dict.fromkeys(point.label for point in points):
        selected = [point for point in points if point.label == label]
        axes.plot(
            [point.density for point in selected], [100 * point.accuracy for point in selected],
            row_styles[label].mark, color=row_styles[label].color, markersize=4.5, alpha=0.8,
            label=name_of(label), markeredgewidth=0,
        )  # fmt: skip


def _described(found: Mapping[str, Correlation | None], which: str, name: str = "") -> str:
    one = found.get(which)
    if one is None:
        return f"{name or which}: no rank correlation"
    return f"{name or which}: ρ = {one.rho:+.2f}, {_p(one.p)}, n = {one.points}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _table(found: Mapping[int, Mapping[str, Correlation | None]], title: str) -> ReportTable:
    names = list(found[1])
    return ReportTable(
        caption=f"Spearman's ρ of ID_k and accuracy on new classes: {title}",
        headers=["", "runs", *(f"k = {k}" for k in found)],
        rows=[
            [
                name,
                str(next((c.points for by in found.values() if (c := by.get(name))), "–")),
                *(_cell(found[k].get(name)) for k in found),
            ]
            for name in names
        ],
        note=f"–: fewer than {LEAST} runs, or no variation between them.",
    )


def _cell(one: Correlation | None) -> Cell:
    if one is None:
        return Cell(text="–", missing=True)
    return Cell(text=f"{one.rho:+.2f}", value=one.rho, detail=_p(one.p))


def _points_table(points: Sequence[RunPoint], title: str) -> ReportTable:
    """Build the table of means over seeds, one line per dataset and row."""
    groups: dict[tuple[str, str], list[RunPoint]] = {}
    for point in points:
        groups.setdefault((point.dataset, point.label), []).append(point)
    return ReportTable(
        caption=f"ID_1 and accuracy on new classes, means over seeds: {title}",
        headers=["dataset", "row", "ID_1", "new (%)", "seeds"],
        rows=[
            [
                dataset,
                label,
                f"{math.fsum(point.density for point in selected) / len(selected):.4f}",
                percent(math.fsum(point.accuracy for point in selected) / len(selected)),
                str(len(selected)),
            ]
            for (dataset, label), selected in groups.items()
        ],
    )
