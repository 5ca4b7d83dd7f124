"""Number of keys and values left in each block while ADAPT prunes them (its Figure 3)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from prompt_serve.research.reports.charts import BLUES, INK, draw, panels, whole_steps
from prompt_serve.research.reports.overview import title_of
from prompt_serve.research.reports.page import Block, Chart, ReportTable, Section
from prompt_serve.research.reports.report_options import ReportOptions, most_shots
from prompt_serve.research.reports.stored_runs import StoredRun, by_comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOWERS = {"image": "image_tokens", "text": "text_tokens"}  # tower -> metric in the log
ROWS = 4  # maximum number of charts per table and dataset


@dataclass(frozen=True, kw_only=True)
class ContextLengths:
    """Context lengths of one row, means over seeds."""

    epochs: tuple[int, ...]  # from 1
    towers: dict[str, tuple[tuple[float, ...], ...]]  # tower -> (epochs, blocks)


def context_lengths_section(runs: Sequence[StoredRun], options: ReportOptions) -> Section:
    """Build a chart for each row that prunes; few-shot runs with the most shots only."""
    blocks: list[Block] = []
    for number, (key, group) in enumerate(by_comparison(runs).items()):
        selected = [run for run in most_shots(group) if _prunes(run)]
        for dataset in options.chosen_datasets(selected):
            of_dataset = [run for run in selected if run.result.dataset == dataset]
            labels = list(dict.fromkeys(run.result.label for run in of_dataset))
            labels = [options.row] if options.row in labels else labels[:ROWS]
            for position, label in enumerate(labels):
                chosen = [run for run in of_dataset if run.result.label == label]
                title = f"{label}: {title_of(*key)}, {dataset}"
                blocks.append(_chart(chosen, title, f"lengths{number}-{len(blocks)}-{position}"))
    return Section(
        anchor="lengths",
        title="Pruning of context lengths",
        after="ADAPT Figure 3",
        blocks=blocks,
        missing=""
        if blocks
        else "Left out: this section needs logs (runs/<run>/history.jsonl) of a method that "
        "prunes, such as adapt.",
    )


def mean_lengths(runs: Sequence[StoredRun]) -> ContextLengths:
    """Average runs of equal shape at the epochs that all have."""
    logs = [{record.epoch + 1: record.facts for record in run.history} for run in runs]
    epochs = sorted(set.intersection(*(set(log) for log in logs)))
    return ContextLengths(
        epochs=tuple(epochs),
        towers={
            tower: tuple(
                tuple(
                    statistics.fmean(of_block)
                    for of_block in zip(*(log[epoch][fact] for log in logs), strict=True)
                )
                for epoch in epochs
            )
            for tower, fact in TOWERS.items()
        },
    )


def _prunes(run: StoredRun) -> bool:
    return bool(run.history) and all(
        fact in record.facts for record in run.history for fact in TOWERS.values()
    )


def _chart(runs: Sequence[StoredRun], title: str, name: str) -> Chart:
    found = mean_lengths(runs)
    seeds = len({run.result.seed for run in runs})
    highest = max(max(map(max, by_epoch)) for by_epoch in found.towers.values())
    blocks = max(len(by_epoch[0]) for by_epoch in found.towers.values())

    def paint(figure: "Figure") -> None:
        for axes, (tower, by_epoch) in zip(
            panels(figure, len(TOWERS), len(TOWERS)), found.towers.items(), strict=True
        ):
            _map(axes, found.epochs, by_epoch, highest)
            left = sum(by_epoch[-1])
            axes.set(title=f"{tower} tower: {_short(left)} left at the end", xlabel="epoch")
        figure.supylabel("block", fontsize=8)

    end = {tower: by_epoch[-1] for tower, by_epoch in found.towers.items()}
    return Chart(
        title=title,
        svg=draw(paint, name=name, height=1.1 + 0.19 * blocks),
        alt="keys and values left in each block, by epoch, for both towers; at the end "
        + "; ".join(f"{tower}: {_listed(lengths)}" for tower, lengths in end.items()),
        caption=f"Keys and values left in each block, of {_short(highest)}; darker means more. "
        f"The numbers to the right are those at the end. {_over(seeds)}",
        tables=[_table(found, title)],
    )


def _map(
    axes: "Axes", epochs: Sequence[int], by_epoch: Sequence[Sequence[float]], highest: float
) -> None:
    """Draw one bar per block, colored by its length."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("lengths", BLUES)
    blocks = len(by_epoch[0])
    for block in range(blocks):
        column = [lengths[block] for lengths in by_epoch]
        spans, shades, first = [], [], 0
        for length, same in groupby(column):
            count = len(list(same))
            spans.append((epochs[first] - 0.5, epochs[first + count - 1] - epochs[first] + 1))
            shades.append(colors(length / highest if highest else 0.0))
            first += count
        axes.broken_barh(spans, (block + 0.54, 0.92), facecolors=shades)
        axes.text(
            epochs[-1] + 0.5, block + 1, f" {_short(column[-1])}", va="center", fontsize=7,
            color=INK,
        )  # fmt: skip
    axes.set(xlim=(epochs[0] - 0.5, epochs[-1] + 0.5), ylim=(0.4, blocks + 0.6))
    axes.set_yticks(range(1, blocks + 1))
    whole_steps(axes)
    axes.grid(visible=False)


def _table(found: ContextLengths, title: str) -> ReportTable:
    count = len(found.epochs)
    at = sorted({round(share * (count - 1) / 4) for share in range(5)})
    rows = []
    for tower, by_epoch in found.towers.items():
        for block in range(len(by_epoch[0])):
            rows.append([f"{tower} {block + 1}", *(_short(by_epoch[i][block]) for i in at)])
        rows.append([f"{tower}, all blocks", *(_short(sum(by_epoch[i])) for i in at)])
    return ReportTable(
        caption=f"Context lengths: {title}",
        headers=["", *(f"after epoch {found.epochs[i]}" for i in at)],
        rows=rows,
    )


def _short(length: float) -> str:
    """Format with one decimal, dropped if it is 0."""
    return f"{length:.1f}".removesuffix(".0")


def _listed(lengths: Sequence[float]) -> str:
    return ", ".join(_short(length) for length in lengths)


def _over(seeds: int) -> str:
    return f"Means over {seeds} seeds." if seeds > 1 else "One seed."
