"""Learning curves: training loss and validation accuracy by epoch."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prompt_serve.errors import counted
from prompt_serve.evaluation_report.markup import percent
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
from prompt_serve.research.reports.page import Block, Cell, Chart, ReportTable, Section
from prompt_serve.research.reports.stored_runs import StoredRun, by_comparison
from prompt_serve.training.without_torch.outcome import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 40  # maximum per line; more cannot be told apart at this size
FEW_POINTS = 12  # lines with at most this many points show markers
TOGETHER = 7  # maximum number of lines per panel
CHECKPOINTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # fractions of the run shown in the table


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean over runs at each epoch, and the standard deviation over seeds."""

    epochs: tuple[int, ...]  # completed epochs, from 1
    mean: tuple[float, ...]
    spread: tuple[float, ...]  # 0 for a single seed


@dataclass(frozen=True, kw_only=True)
class CurveMetric:
    """Metric drawn as a curve."""

    key: str
    name: str
    axis: str
    of: Callable[[EpochRecord], float | None]


MEASURES = (
    CurveMetric(
        key="accuracy", name="validation accuracy", axis="%",
        of=lambda record: None if record.val_accuracy is None else 100 * record.val_accuracy,
    ),
    CurveMetric(key="loss", name="training loss", axis="loss", of=lambda record: record.loss),
)  # fmt: skip


def curves_section(runs: Sequence[StoredRun]) -> Section:
    """Build two charts over all datasets and two by dataset, for each table.

    Few-shot runs are restricted to the largest number of shots.
    """
    blocks: list[Block] = []
    for number, (key, group) in enumerate(by_comparison(runs).items()):
        shots = max(run.result.shots for run in group)
        selected = [run for run in group if run.result.shots == shots and run.history]
        title = f"{title_of(*key)}, {counted(shots, 'shot')}"
        row_styles = styles(run.result.label for run in group)
        for measure in MEASURES:
            blocks += _charts(selected, measure, row_styles, title, f"curves{number}-{measure.key}")
    return Section(
        anchor="curves",
        title="Learning curves",
        blocks=blocks,
        missing=""
        if blocks
        else "Left out: this section needs the logs, runs/<run>/history.jsonl beside "
        "results.jsonl.",
    )


def mean_curve(runs: Sequence[StoredRun], of: Callable[[EpochRecord], float | None]) -> Curve:
    """Average over datasets and seeds at the epochs that all runs have.

    The spread is the standard deviation of the seeds' means over datasets.
    """
    values = [
        {record.epoch + 1: found for record in run.history if (found := of(record)) is not None}
        for run in runs
    ]
    shared = sorted(set.intersection(*(set(of_run) for of_run in values))) if values else []
    shared = [epoch for epoch in shared if all(math.isfinite(of_run[epoch]) for of_run in values)]
    seeds = dict.fromkeys(run.result.seed for run in runs)
    by_seed = [
        [of_run for of_run, run in zip(values, runs, strict=True) if run.result.seed == seed]
        for seed in seeds
    ]
    means, spreads = [], []
    for epoch in shared:
        each = [statistics.fmean(of_run[epoch] for of_run in of_seed) for of_seed in by_seed]
        means.append(statistics.fmean(of_run[epoch] for of_run in values))
        spreads.append(statistics.stdev(each) if len(each) > 1 else 0.0)
    return Curve(epochs=tuple(shared), mean=tuple(means), spread=tuple(spreads))


def _charts(
    runs: Sequence[StoredRun],
    measure: CurveMetric,
    row_styles: Mapping[str, Style],
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
                lambda figure: _by_row(figure, by_label, row_styles, measure),
                name=name,
                height=_height(len(by_label)),
            ),
            alt=f"{measure.name} by epoch, one panel per row, the other rows in gray",
            caption=f"One panel per row: {over}, with one standard deviation over the seeds; "
            "the other rows in pale gray behind it.",
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
                    lambda figure: _by_dataset(figure, apart, row_styles, measure),
                    name=f"{name}-datasets",
                    height=_height(len(datasets)) + 0.3,
                ),
                alt=f"{measure.name} by epoch, one panel per dataset, one line per row",
                caption="Mean over the seeds."
                + (
                    ""
                    if len(shown) == len(by_label)
                    else f" The {len(shown)} rows with the best validation accuracy."
                ),
                tables=[
                    _table(selected, measure, f"{title}: {dataset}")
                    for dataset, selected in apart.items()
                    if selected
                ],
            )
        )
    return charts


def _of_dataset(runs: Sequence[StoredRun], dataset: str, label: str, measure: CurveMetric) -> Curve:
    selected = [run for run in runs if (run.result.dataset, run.result.label) == (dataset, label)]
    return mean_curve(selected, measure.of)


def _most_accurate(runs: Sequence[StoredRun], labels: list[str]) -> list[str]:
    """Return the best rows by validation accuracy that fit one panel, in their original order."""

    def validated(label: str) -> float:
        found = [r.validation_accuracy or 0.0 for r in (x.result for x in runs) if r.label == label]
        return -statistics.fmean(found)

    best = sorted(labels, key=validated)[:TOGETHER]
    return [label for label in labels if label in best]


def _height(count: int) -> float:
    return 0.5 + 1.55 * -(-count // 4)


def _by_row(
    figure: "Figure",
    curves: Mapping[str, Curve],
    row_styles: Mapping[str, Style],
    measure: CurveMetric,
) -> None:
    columns = min(4, max(2, len(curves)))
    axes = panels(figure, len(curves), columns, sharex=True, sharey=True)
    # All other rows are one path: many pale lines in each of many panels would bloat the page.
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
        _line(one, curve, row_styles[label], label, band=True)
        one.set_title(name_of(label, 30))
    _name_axes(figure, measure)


def _by_dataset(
    figure: "Figure",
    curves: Mapping[str, Mapping[str, Curve]],
    row_styles: Mapping[str, Style],
    measure: CurveMetric,
) -> None:
    columns = min(4, max(2, len(curves)))
    axes = panels(figure, len(curves), columns, sharex=True)
    for one, (dataset, selected) in zip(axes, curves.items(), strict=True):
        whole_steps(one)
        for label, curve in selected.items():
            _line(one, curve, row_styles[label], label, band=False)
        one.set_title(name_of(dataset, 30))
    named = {t.get_label(): t for one in axes for t in one.get_lines()}
    figure.legend(
        named.values(), [str(name) for name in named], loc="outside upper left", ncols=TOGETHER
    )
    _name_axes(figure, measure)


def _name_axes(figure: "Figure", measure: CurveMetric) -> None:
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel(f"{measure.name} ({measure.axis})" if measure.axis == "%" else measure.name,
                     fontsize=8)  # fmt: skip


def _line(axes: "Axes", curve: Curve, style: Style, label: str, *, band: bool) -> None:
    points = thinned(curve)
    axes.plot(
        points.epochs, points.mean, color=style.color, linestyle=style.dash, label=name_of(label),
        marker="o" if len(points.epochs) <= FEW_POINTS else None, markersize=3,
    )  # fmt: skip
    if band and any(points.spread):
        pairs = list(zip(points.mean, points.spread, strict=True))
        axes.fill_between(
            points.epochs, [mean - spread for mean, spread in pairs],
            [mean + spread for mean, spread in pairs], color=style.color, alpha=0.2, linewidth=0,
        )  # fmt: skip


def thinned(curve: Curve) -> Curve:
    """Reduce a curve to at most ``POINTS`` points, keeping the first and the last."""
    count = len(curve.epochs)
    if count <= POINTS:
        return curve
    chosen = sorted({round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)})
    return Curve(
        epochs=tuple(curve.epochs[i] for i in chosen),
        mean=tuple(curve.mean[i] for i in chosen),
        spread=tuple(curve.spread[i] for i in chosen),
    )


def _table(curves: Mapping[str, Curve], measure: CurveMetric, title: str) -> ReportTable:
    """Build the table of each curve at its start, its quarters and its end."""
    rows: list[list[Cell | str]] = []
    for label, curve in curves.items():
        at = [round(fraction * (len(curve.epochs) - 1)) for fraction in CHECKPOINTS]
        rows.append([label, *(_at(curve, index, measure) for index in at)])
    headers = ["", "first", "a quarter", "half", "three quarters", "last"]
    return ReportTable(caption=f"{measure.name.capitalize()}: {title}", headers=headers, rows=rows)


def _at(curve: Curve, index: int, measure: CurveMetric) -> Cell:
    value = curve.mean[index]
    text = percent(value / 100) if measure.axis == "%" else f"{value:.3f}"
    return Cell(text=text, value=value, detail=f"epoch {curve.epochs[index]}")
