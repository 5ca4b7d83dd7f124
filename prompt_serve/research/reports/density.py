"""Whether dense information goes with accuracy on new classes (DIP, Figure 1)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prompt_serve.research.protocols.summary import BASE_TO_NEW, NEW
from prompt_serve.research.reports.charts import Style, draw, name_of, panels, styles
from prompt_serve.research.reports.overview import title_of
from prompt_serve.research.reports.page import Block, Cell, Chart, Section, Table, percent
from prompt_serve.research.reports.stored_runs import StoredRun, by_comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 4  # points that a correlation is computed of
POOLED, WITHIN = "all runs", "all runs, each less the mean of its dataset"


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's rank correlation."""

    rho: float
    p: float  # two-sided, that so much comes of chance; takes the points for independent
    points: int


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One run."""

    dataset: str
    label: str
    seed: int
    density: float  # ID_k
    accuracy: float  # on new classes


def density(runs: Sequence[StoredRun]) -> Section:
    """A chart for each base-to-new table."""
    blocks: list[Block] = []
    for number, (key, group) in enumerate(by_comparison(runs).items()):
        if key[0] == BASE_TO_NEW:
            depths = [len(run.result.idk) for run in group if run.result.idk]
            # The last is 1 of all: the whole is all of itself.
            ks = range(1, max(2, min(depths, default=0)))
            if len(dots(group, 1)) >= LEAST:
                blocks.append(_chart(group, ks, title_of(*key), number))
    return Section(
        anchor="density",
        title="Density of information against new classes",
        after="DIP Figure 1",
        intro="ID_k is the share of the k largest singular values of the learned vectors in the "
        "sum of all, after the last epoch: near 1, few directions hold nearly everything. The "
        "paper calls that dense, and finds it to go with accuracy on new classes on two datasets "
        "(ρ above 0.9).",
        blocks=blocks,
        missing=""
        if blocks
        else f"Left out: it wants {LEAST} base-to-new runs or more that learned vectors.",
    )


def dots(runs: Sequence[StoredRun], k: int) -> list[Dot]:
    """A point for each run that has ID_k and accuracy on new classes."""
    results = [run.result for run in runs]
    return [
        Dot(dataset=r.dataset, label=r.label, seed=r.seed, density=r.idk[k - 1],
            accuracy=r.accuracy[NEW])
        for r in results
        if len(r.idk) >= k and NEW in r.accuracy
    ]  # fmt: skip


def spearman(dots: Sequence[Dot]) -> Correlation | None:
    """None of too few points, or where one side is all alike."""
    from scipy.stats import spearmanr

    x, y = [dot.density for dot in dots], [dot.accuracy for dot in dots]
    if len(dots) < LEAST or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    found = spearmanr(x, y)
    return Correlation(rho=float(found.statistic), p=float(found.pvalue), points=len(dots))


def correlations(dots: Sequence[Dot]) -> dict[str, Correlation | None]:
    """Of all runs together, within datasets, and of each dataset."""
    datasets = list(dict.fromkeys(dot.dataset for dot in dots))
    found = {POOLED: spearman(dots)}
    if len(datasets) > 1:
        found[WITHIN] = spearman(centered(dots))
        found |= {name: spearman([d for d in dots if d.dataset == name]) for name in datasets}
    return found


def centered(dots: Sequence[Dot]) -> list[Dot]:
    """Each less the mean of its dataset, so that datasets do not differ."""
    moved = []
    for name in dict.fromkeys(dot.dataset for dot in dots):
        own = [dot for dot in dots if dot.dataset == name]
        density = math.fsum(dot.density for dot in own) / len(own)
        accuracy = math.fsum(dot.accuracy for dot in own) / len(own)
        # Rounded: what is equal but for the last bit must stay equal in rank.
        moved += [
            Dot(dataset=name, label=dot.label, seed=dot.seed,
                density=round(dot.density - density, 12),
                accuracy=round(dot.accuracy - accuracy, 12))
            for dot in own
        ]  # fmt: skip
    return moved


def _chart(runs: Sequence[StoredRun], ks: Sequence[int], title: str, number: int) -> Chart:
    looks = styles(run.result.label for run in runs)
    points = dots(runs, 1)
    several = len({dot.dataset for dot in points}) > 1
    found = {k: correlations(dots(runs, k)) for k in ks}

    def paint(figure: "Figure") -> None:
        left, *rest = panels(figure, 2 if several else 1, 2 if several else 1)
        _scatter(left, points, looks)
        left.set(xlabel="ID_1", ylabel="accuracy on new classes (%)")
        left.set_title(_said(found[1], POOLED))
        for axes in rest:
            _scatter(axes, centered(points), looks)
            axes.set(
                xlabel="ID_1, less its dataset's mean",
                ylabel="accuracy, less its dataset's mean (points)",
                title=_said(found[1], WITHIN, "within datasets"),
            )
        handles = {str(line.get_label()): line for line in left.get_lines()}
        figure.legend(handles.values(), list(handles), loc="outside lower center", ncols=5)

    return Chart(
        title=title,
        svg=draw(
            paint,
            name=f"density{number}",
            width=9.6 if several else 6.4,
            height=3.3 + 0.16 * -(-len({dot.label for dot in points}) // 5),
        ),
        alt=f"accuracy on new classes against ID_1, a point for each of {len(points)} runs; "
        f"{_said(found[1], POOLED)}",
        caption="A point a run. Datasets differ in how hard they are and rows in how they are "
        "made, and both move either axis: a correlation over all runs may be theirs alone. To the "
        "right and in the table, what is left within datasets. Runs that differ in their seed "
        "alone count as points of their own, so p is smaller than honest.",
        tables=[_table(found, title), _dots_table(points, title)],
    )


def _scatter(axes: "Axes", dots: Sequence[Dot], looks: Mapping[str, Style]) -> None:
    for label in dict.fromkeys(dot.label for dot in dots):
        own = [dot for dot in dots if dot.label == label]
        axes.plot(
            [dot.density for dot in own], [100 * dot.accuracy for dot in own], looks[label].mark,
            color=looks[label].color, markersize=4.5, alpha=0.8, label=name_of(label),
            markeredgewidth=0,
        )  # fmt: skip


def _said(found: Mapping[str, Correlation | None], which: str, name: str = "") -> str:
    one = found.get(which)
    if one is None:
        return f"{name or which}: no rank correlation"
    return f"{name or which}: ρ = {one.rho:+.2f}, {_p(one.p)}, n = {one.points}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _table(found: Mapping[int, Mapping[str, Correlation | None]], title: str) -> Table:
    names = list(found[1])
    return Table(
        caption=f"Spearman's ρ of ID_k and accuracy on new classes: {title}",
        heads=["", "runs", *(f"k = {k}" for k in found)],
        rows=[
            [
                name,
                str(next((c.points for by in found.values() if (c := by.get(name))), "–")),
                *(_cell(found[k].get(name)) for k in found),
            ]
            for name in names
        ],
        note=f"– of fewer than {LEAST} runs, or of runs that are all alike.",
    )


def _cell(one: Correlation | None) -> Cell:
    if one is None:
        return Cell(text="–", missing=True)
    return Cell(text=f"{one.rho:+.2f}", value=one.rho, detail=_p(one.p))


def _dots_table(dots: Sequence[Dot], title: str) -> Table:
    """Of each row and dataset, the mean over seeds: 600 lines would help nobody."""
    groups: dict[tuple[str, str], list[Dot]] = {}
    for dot in dots:
        groups.setdefault((dot.dataset, dot.label), []).append(dot)
    return Table(
        caption=f"ID_1 and accuracy on new classes, means over seeds: {title}",
        heads=["dataset", "row", "ID_1", "new (%)", "seeds"],
        rows=[
            [
                dataset,
                label,
                f"{math.fsum(dot.density for dot in own) / len(own):.4f}",
                percent(math.fsum(dot.accuracy for dot in own) / len(own)),
                str(len(own)),
            ]
            for (dataset, label), own in groups.items()
        ],
    )
