"""Learning curves: loss and validation accuracy by epoch."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prompt_serve.research.reports.charts import (
    PALE,
    Style,
    draw,
    name_of,
    panels,
    styles,
    whole_steps,
)
from prompt_serve.research.reports.overview import title_of
from prompt_serve.research.reports.page import Block, Cell, Chart, Section, Table, percent
from prompt_serve.research.reports.stored_runs import StoredRun, by_comparison
from prompt_serve.training.loop import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 40  # of a line; more cannot be told apart at this size
FEW_POINTS = 12  # of a line whose points are shown, as where not every epoch was validated
TOGETHER = 7  # lines of one panel that can be told apart
ROUNDS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the run that stand in the table


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean over runs at each epoch, and the standard deviation over seeds."""

    epochs: tuple[int, ...]  # from 1: after so many
    mean: tuple[float, ...]
    spread: tuple[float, ...]  # 0 where there is one seed


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is followed."""

    key: str
    name: str
    axis: str
    of: Callable[[EpochRecord], float | None]


MEASURES = (
    Measure(
        key="accuracy", name="validation accuracy", axis="%",
        of=lambda record: None if record.val_accuracy is None else 100 * record.val_accuracy,
    ),
    Measure(key="loss", name="training loss", axis="loss", of=lambda record: record.loss),
)  # fmt: skip


def curves(runs: Sequence[StoredRun]) -> Section:
    """Two charts over all datasets and two by dataset, for each table; of few-shot runs, those
    with the most shots."""
    blocks: list[Block] = []
    for number, (key, group) in enumerate(by_comparison(runs).items()):
        shots = max(run.result.shots for run in group)
        own = [run for run in group if run.result.shots == shots and run.history]
        title = f"{title_of(*key)}, {shots} shots"
        looks = styles(run.result.label for run in group)
        for measure in MEASURES:
            blocks += _charts(own, measure, looks, title, f"curves{number}-{measure.key}")
    return Section(
        anchor="curves",
        title="Learning curves",
        blocks=blocks,
        missing=""
        if blocks
        else "Left out: it wants the logs, runs/<run>/history.jsonl beside results.jsonl.",
    )


def mean_curve(runs: Sequence[StoredRun], of: Callable[[EpochRecord], float | None]) -> Curve:
    """Mean over datasets and seeds at the epochs that all runs have; the spread is that of the
    seeds' means over datasets."""
    values = [
        {record.epoch + 1: found for record in run.history if (found := of(record)) is not None}
        for run in runs
    ]
    shared = sorted(set.intersection(*(set(own) for own in values))) if values else []
    shared = [epoch for epoch in shared if all(math.isfinite(own[epoch]) for own in values)]
    seeds = dict.fromkeys(run.result.seed for run in runs)
    by_seed = [
        [own for own, run in zip(values, runs, strict=True) if run.result.seed == seed]
        for seed in seeds
    ]
    means, spreads = [], []
    for epoch in shared:
        each = [statistics.fmean(own[epoch] for own in of_seed) for of_seed in by_seed]
        means.append(statistics.fmean(own[epoch] for own in values))
        spreads.append(statistics.stdev(each) if len(each) > 1 else 0.0)
    return Curve(epochs=tuple(shared), mean=tuple(means), spread=tuple(spreads))


def _charts(
    runs: Sequence[StoredRun],
    measure: Measure,
    looks: Mapping[str, Style],
    title: str,
    name: str,
) -> list[Block]:
    labels = list(dict.fromkeys(run.result.label for run in runs))
    datasets = list(dict.fromkeys(run.result.dataset for run in runs))
    by_label = {
        label: mean_curve([run for run in runs if run.result.label == label], measure.of)
        for label in labels
    }
    by_label = {label: curve for label, curve in by_label.items() if curve.epochs}
    if not by_label:
        return []
    over = f"mean over {len(datasets)} datasets and the seeds" if len(datasets) > 1 else (
        "mean over the seeds"
    )  # fmt: skip
    charts: list[Block] = [
        Chart(
            title=f"{measure.name.capitalize()} by epoch: {title}",
            svg=draw(
                lambda figure: _by_row(figure, by_label, looks, measure),
                name=name,
                height=_height(len(by_label)),
            ),
            alt=f"{measure.name} by epoch, a panel for each row, the other rows in gray",
            caption=f"A panel a row: {over}, with one standard deviation over the seeds; "
            "behind it, pale, the other rows.",
            tables=[_table(by_label, measure, title)],
        )
    ]
    if len(datasets) > 1:
        shown = _most_accurate(runs, list(by_label))
        apart = {
            dataset: {
                label: curve
                for label in shown
                if (curve := _of_dataset(runs, dataset, label, measure)).epochs
            }
            for dataset in datasets
        }
        charts.append(
            Chart(
                title=f"{measure.name.capitalize()} by epoch and dataset: {title}",
                svg=draw(
                    lambda figure: _by_dataset(figure, apart, looks, measure),
                    name=f"{name}-datasets",
                    height=_height(len(datasets)) + 0.3,
                ),
                alt=f"{measure.name} by epoch, a panel for each dataset, a line for each row",
                caption="Mean over the seeds."
                + (
                    ""
                    if len(shown) == len(by_label)
                    else f" The {len(shown)} rows with the best validation accuracy."
                ),
                tables=[
                    _table(own, measure, f"{title}: {dataset}")
                    for dataset, own in apart.items()
                    if own
                ],
            )
        )
    return charts


def _of_dataset(runs: Sequence[StoredRun], dataset: str, label: str, measure: Measure) -> Curve:
    own = [run for run in runs if (run.result.dataset, run.result.label) == (dataset, label)]
    return mean_curve(own, measure.of)


def _most_accurate(runs: Sequence[StoredRun], labels: list[str]) -> list[str]:
    """Rows that one panel can hold, by validation accuracy, in their own order."""

    def validated(label: str) -> float:
        found = [r.validation_accuracy or 0.0 for r in (x.result for x in runs) if r.label == label]
        return -statistics.fmean(found)

    best = sorted(labels, key=validated)[:TOGETHER]
    return [label for label in labels if label in best]


def _height(count: int) -> float:
    return 0.5 + 1.55 * -(-count // 4)


def _by_row(
    figure: "Figure", curves: Mapping[str, Curve], looks: Mapping[str, Style], measure: Measure
) -> None:
    columns = min(4, max(2, len(curves)))
    axes = panels(figure, len(curves), columns, sharex=True, sharey=True)
    # Drawn once as one shape: many pale lines in each of many panels would fill the page.
    for one, (label, curve) in zip(axes, curves.items(), strict=True):
        x: list[float] = []
        y: list[float] = []
        for other, behind in curves.items():
            if other != label:
                points = thinned(behind)
                x += [*points.epochs, math.nan]
                y += [*points.mean, math.nan]
        one.plot(x, y, color=PALE, linewidth=0.8)
        whole_steps(one)
        _line(one, curve, looks[label], label, band=True)
        one.set_title(name_of(label, 30))
    _name_axes(figure, measure)


def _by_dataset(
    figure: "Figure",
    curves: Mapping[str, Mapping[str, Curve]],
    looks: Mapping[str, Style],
    measure: Measure,
) -> None:
    columns = min(4, max(2, len(curves)))
    axes = panels(figure, len(curves), columns, sharex=True)
    for one, (dataset, own) in zip(axes, curves.items(), strict=True):
        whole_steps(one)
        for label, curve in own.items():
            _line(one, curve, looks[label], label, band=False)
        one.set_title(name_of(dataset, 30))
    named = {t.get_label(): t for one in axes for t in one.get_lines()}
    figure.legend(
        named.values(), [str(name) for name in named], loc="outside upper left", ncols=TOGETHER
    )
    _name_axes(figure, measure)


def _name_axes(figure: "Figure", measure: Measure) -> None:
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel(f"{measure.name} ({measure.axis})" if measure.axis == "%" else measure.name,
                     fontsize=8)  # fmt: skip


def _line(axes: "Axes", curve: Curve, look: Style, label: str, *, band: bool) -> None:
    points = thinned(curve)
    axes.plot(
        points.epochs, points.mean, color=look.color, linestyle=look.dash, label=name_of(label),
        marker="o" if len(points.epochs) <= FEW_POINTS else None, markersize=3,
    )  # fmt: skip
    if band and any(points.spread):
        pairs = list(zip(points.mean, points.spread, strict=True))
        axes.fill_between(
            points.epochs, [mean - spread for mean, spread in pairs],
            [mean + spread for mean, spread in pairs], color=look.color, alpha=0.2, linewidth=0,
        )  # fmt: skip


def thinned(curve: Curve) -> Curve:
    """At most ``POINTS`` points, the first and the last among them."""
    count = len(curve.epochs)
    if count <= POINTS:
        return curve
    kept = sorted({round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)})
    return Curve(
        epochs=tuple(curve.epochs[i] for i in kept),
        mean=tuple(curve.mean[i] for i in kept),
        spread=tuple(curve.spread[i] for i in kept),
    )


def _table(curves: Mapping[str, Curve], measure: Measure, title: str) -> Table:
    """Each curve at its start, its quarters and its end."""
    rows: list[list[Cell | str]] = []
    for label, curve in curves.items():
        at = [round(share * (len(curve.epochs) - 1)) for share in ROUNDS]
        rows.append([label, *(_at(curve, index, measure) for index in at)])
    heads = ["", "first", "a quarter", "half", "three quarters", "last"]
    return Table(caption=f"{measure.name.capitalize()}: {title}", heads=heads, rows=rows)


def _at(curve: Curve, index: int, measure: Measure) -> Cell:
    value = curve.mean[index]
    text = percent(value / 100) if measure.axis == "%" else f"{value:.3f}"
    return Cell(text=text, value=value, detail=f"epoch {curve.epochs[index]}")
