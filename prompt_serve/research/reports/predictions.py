"""Predictions: confusion matrix, reliability diagram, and the most confident mistakes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prompt_serve import measures
from prompt_serve.calibration import BINS, ConfidenceBin, calibration_error, confidence_bins
from prompt_serve.errors import counted
from prompt_serve.evaluation_report.markup import percent
from prompt_serve.research.protocols.results import StoredPredictions
from prompt_serve.research.reports.charts import BLUES, INK, draw, name_of, panels, styles
from prompt_serve.research.reports.overview import title_of
from prompt_serve.research.reports.page import (
    Block,
    Cell,
    Chart,
    ReportTable,
    Section,
    Text,
)
from prompt_serve.research.reports.report_options import ReportOptions, most_shots
from prompt_serve.research.reports.stored_runs import StoredRun, by_comparison
from prompt_serve.research.reports.thumbnails import Thumbnails, confused_pairs
from prompt_serve.types import IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEST_SETS = 2  # shown per run; a transfer has ten
MATRIX_CLASSES = 100  # more classes would give cells of less than a pixel
NUMBERED_CLASSES, NAMED_CLASSES = 20, 60
LISTED = 200  # maximum number of classes in a table
CONFUSIONS = 15
REDS = ("#fdf3ec", "#b04a00")
ZERO_SHOT = "zero-shot"


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """Predictions of one run on one test set."""

    run: StoredRun
    test_set: str
    predictions: StoredPredictions
    zero_shot: StoredPredictions | None  # of the same dataset and test set
    title: str
    name: str  # for ids


def predictions_section(
    runs: Sequence[StoredRun], options: ReportOptions, thumbnails: Thumbnails
) -> Section:
    """Build the section: for each table, the chosen row on the chosen datasets."""
    blocks: list[Block] = []
    for shown in _shown(runs, options):
        blocks.append(_heading(shown, options))
        if len(shown.predictions.class_names) <= MATRIX_CLASSES:
            blocks.append(_confusion(shown))
        else:
            blocks.append(_classes_tables(shown)[0])
        blocks.append(_reliability(shown))
        blocks.append(confused_pairs(shown.predictions, shown.title, thumbnails))
    return Section(
        anchor="predictions",
        title="Predictions: confusion, reliability, confused images",
        intro="For one row (--row; by default the one with the best mean validation accuracy over "
        "its datasets and seeds) on the datasets named with --dataset (by default the first).",
        blocks=blocks,
        missing=""
        if blocks
        else "Left out: this section needs the predictions of the row "
        "(runs/<run>/predictions-<test set>.npz).",
    )


def confusion_matrix(predictions: StoredPredictions) -> IntArray:
    """Count test images by true class (row) and predicted class (column): (C, C)."""
    return measures.confusion_matrix(
        predictions.labels, predictions.predicted[:, 0], len(predictions.class_names)
    )


def reliability(predictions: StoredPredictions) -> tuple[ConfidenceBin | None, ...]:
    """Sort predictions into equal bins of confidence; None marks an empty bin."""
    confidence = predictions.probabilities[:, 0].astype(np.float64)
    return confidence_bins(confidence, predictions.predicted[:, 0] == predictions.labels)


def confusions(predictions: StoredPredictions) -> list[tuple[int, int, int]]:
    """Return (class, predicted class, images) of all mistakes, the most frequent first."""
    return measures.confusions(predictions.labels, predictions.predicted[:, 0])


def _shown(runs: Sequence[StoredRun], options: ReportOptions) -> Iterator[ShownRun]:
    for number, (key, group) in enumerate(by_comparison(runs).items()):
        selected = most_shots(group)
        rows = options.rows(selected)
        stored = [run for run in selected if run.result.label in rows and run.predicted_test_sets]
        for position, dataset in enumerate(options.chosen_datasets(stored)):
            of_dataset = [run for run in stored if run.result.dataset == dataset]
            if not of_dataset:
                continue
            run = min(of_dataset, key=lambda run: run.result.seed)
            for test_set in run.predicted_test_sets[:TEST_SETS]:
                yield ShownRun(
                    run=run,
                    test_set=test_set,
                    predictions=run.predictions(test_set),
                    zero_shot=_zero_shot(selected, run, test_set),
                    title=f"{run.result.label}, {title_of(*key)}, {dataset} ({test_set})",
                    name=f"predictions{number}-{position}-{run.predicted_test_sets.index(test_set)}",
                )


def _zero_shot(
    runs: Sequence[StoredRun], run: StoredRun, test_set: str
) -> StoredPredictions | None:
    other = [
        one for one in runs
        if one.result.method == ZERO_SHOT and one.result.dataset == run.result.dataset
        and one is not run and test_set in one.predicted_test_sets
    ]  # fmt: skip
    same = [one for one in other if one.result.seed == run.result.seed]
    return (same or other)[0].predictions(test_set) if other else None


def _heading(shown: ShownRun, options: ReportOptions) -> Text:
    result = shown.run.result
    validated = (
        "no validation accuracy"
        if result.validation_accuracy is None
        else f"validation accuracy {percent(result.validation_accuracy)} %"
    )
    predictions = shown.predictions
    right = float((predictions.predicted[:, 0] == predictions.labels).mean())
    why = "as requested" if options.row else "the best row by validation accuracy"
    return Text(
        title=shown.title,
        lines=[
            f"Seed {result.seed}, {counted(result.shots, 'shot')}, {why}: {validated}, test "
            f"accuracy {percent(right)} % on {len(predictions.labels):,} images of "
            f"{len(predictions.class_names):,} classes."
        ],
    )


def _confusion(shown: ShownRun) -> Chart:
    predictions = shown.predictions
    counts = confusion_matrix(predictions)
    classes = len(counts)
    side = min(8.6, 3.0 + 0.2 * classes)
    return Chart(
        title="Confusion matrix",
        svg=draw(
            lambda figure: _matrix(figure.subplots(), counts, predictions.class_names),
            name=f"{shown.name}-confusion",
            width=min(9.6, side + 1.0),
            height=side,
        ),
        alt=f"confusion matrix of {classes} classes; most often confused: "
        + (
            "; ".join(
                f"{predictions.class_names[i]} as {predictions.class_names[j]}, "
                f"{counted(n, 'image')}"
                for i, j, n in confusions(predictions)[:3]
            )
            or "nothing"
        ),
        caption="Rows are true classes, columns predicted classes. Correct predictions are blue, "
        "mistakes red; the darker, the larger the share of the class."
        + (" Numbers are counts of images." if classes <= NUMBERED_CLASSES else ""),
        tables=_classes_tables(shown),
    )


def _matrix(axes: "Axes", counts: IntArray, names: Sequence[str]) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    right = LinearSegmentedColormap.from_list("right", BLUES)
    wrong = LinearSegmentedColormap.from_list("wrong", REDS)
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells, shades = [], []
    for i, j in np.argwhere(counts):
        cells.append(Rectangle((j - 0.5, i - 0.5), 1, 1))
        shades.append((right if i == j else wrong)(float(shares[i, j])))
        if classes <= NUMBERED_CLASSES:
            ink = "#ffffff" if shares[i, j] > 0.55 else INK
            axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", fontsize=7, color=ink)
    axes.add_collection(PatchCollection(cells, facecolors=shades, edgecolors="none"))
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), aspect="equal")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(visible=False)
    if classes <= NAMED_CLASSES:
        size = 7 if classes <= 30 else 5
        short = [name_of(name, 22) for name in names]
        axes.set_xticks(range(classes), short, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), short, fontsize=size)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(True)


def _classes_tables(shown: ShownRun) -> list[ReportTable]:
    predictions = shown.predictions
    names, counts = predictions.class_names, confusion_matrix(predictions)
    totals = counts.sum(axis=1)
    frequent = confusions(predictions)[:CONFUSIONS]
    first: dict[int, str] = {}
    for i, j, n in confusions(predictions):
        first.setdefault(i, f"{names[j]} ({n})")
    return [
        ReportTable(
            caption=f"Most frequent confusions: {shown.title}",
            headers=["class", "predicted", "images", "images of the class"],
            rows=[[names[i], names[j], f"{n:,}", f"{totals[i]:,}"] for i, j, n in frequent],
        ),
        ReportTable(
            caption=f"By class: {shown.title}",
            headers=["class", "images", "correct (%)", "most often mistaken for"],
            rows=[
                [
                    names[i],
                    f"{totals[i]:,}",
                    percent(counts[i, i] / totals[i]) if totals[i] else "–",
                    first.get(i, ""),
                ]
                for i in range(min(len(names), LISTED))
            ],
            note=f"The first {LISTED} of {len(names):,} classes." if len(names) > LISTED else "",
        ),
    ]


def _reliability(shown: ShownRun) -> Chart:
    label = shown.run.result.label
    found = {label: reliability(shown.predictions)}
    if shown.zero_shot is not None:
        found["zero-shot"] = reliability(shown.zero_shot)
    row_styles = styles([label, "zero-shot"])

    def paint(figure: "Figure") -> None:
        for axes, (row, bins) in zip(panels(figure, len(found), len(found), sharey=True),
                                     found.items(), strict=True):  # fmt: skip
            _bars(axes, bins, row_styles[row].color)
            error = percent(calibration_error(bins))
            axes.set_title(f"{name_of(row, 40)}: ECE {error} %")
        figure.supylabel("accuracy (%)", fontsize=8)

    errors = ", ".join(f"{row} {percent(calibration_error(bins))} %" for row, bins in found.items())
    return Chart(
        title="Reliability diagram",
        svg=draw(paint, name=f"{shown.name}-reliability", width=4.1 * len(found) + 0.4, height=3.4),
        alt=f"accuracy against confidence; expected calibration error: {errors}",
        caption=f"{BINS} equal bins of confidence, the probability of the predicted class. On the "
        "dotted diagonal, confidence equals accuracy; a bar below it is overconfident. Pale bars "
        "hold fewer than 10 images; the thin line is the share of images in each bin. ECE is the "
        "expected calibration error, computed from the stored probabilities (float16).",
        tables=[_bins_table(row, bins, shown.title) for row, bins in found.items()],
    )


def _bars(axes: "Axes", bins: Sequence[ConfidenceBin | None], color: str) -> None:
    images = sum(one.images for one in bins if one)
    for number, one in enumerate(bins):
        if one:
            axes.bar((number + 0.5) / BINS, 100 * one.accuracy, width=0.9 / BINS, color=color,
                     alpha=0.85 if one.images >= 10 else 0.3)  # fmt: skip
    shares = [100 * one.images / max(1, images) if one else 0.0 for one in bins]
    axes.stairs(shares, np.linspace(0, 1, BINS + 1), color=INK, linewidth=0.8)
    axes.plot([0, 1], [0, 100], color=INK, linestyle=(0, (1, 2)), linewidth=1.0, zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 100), xlabel="confidence")


def _bins_table(row: str, bins: Sequence[ConfidenceBin | None], title: str) -> ReportTable:
    return ReportTable(
        caption=f"Bins of confidence: {row} ({title})",
        headers=["confidence", "images", "mean confidence (%)", "accuracy (%)"],
        rows=[
            [
                f"{number / BINS:.3f} to {(number + 1) / BINS:.3f}",
                f"{one.images:,}",
                Cell(text=percent(one.confidence), value=one.confidence),
                Cell(text=percent(one.accuracy), value=one.accuracy),
            ]
            for number, one in enumerate(bins)
            if one
        ],
        note=f"Expected calibration error: {percent(calibration_error(bins), 2)} %.",
    )
