"""Histograms of learned numbers, and their codebooks (Quantized Prompt, Figs. 3, 6)."""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from prompt_serve.prompts.encodings import LowRank
from prompt_serve.prompts.folding import fold_text
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.prompts.sequences import template_ids
from prompt_serve.research.reports.charts import (
    GRAY,
    PALE,
    Style,
    draw,
    name_of,
    panels,
    styles,
    whole_steps,
)
from prompt_serve.research.reports.overview import title_of
from prompt_serve.research.reports.page import Block, Chart, ReportTable, Section
from prompt_serve.research.reports.report_options import ReportOptions, most_shots
from prompt_serve.research.reports.stored_runs import StoredRun, by_comparison
from prompt_serve.training.clip.backbone import EMBEDDED, EMBEDDED_VIT, load_backbone
from prompt_serve.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 8
BINS = 48
OUTSIDE = 0.004  # fraction of all numbers outside the axis; a few are 100 times larger
FEW_VALUES = 32  # up to this many distinct values are drawn as lines instead of bins
PLAIN, CODED = "coop", "qcoop"  # the methods that the paper compares
DIVERGENCE, RECLUSTERINGS = "code_divergence", "reclusterings"


def weights_section(runs: Sequence[StoredRun], options: ReportOptions) -> Section:
    """Build histograms of the numbers and trends of the codebooks, for each table."""
    blocks: list[Block] = []
    for number, (key, group) in enumerate(by_comparison(runs).items()):
        row_styles = styles(run.result.label for run in group)
        selected = most_shots(group)
        blocks += _histograms(selected, options, row_styles, title_of(*key), number)
        blocks += _trends(selected, options, row_styles, title_of(*key), number)
    return Section(
        anchor="weights",
        title="Learned numbers and codebooks",
        after="Quantized Prompt Figures 3 and 6",
        blocks=blocks,
        missing=""
        if blocks
        else "Left out: this section needs prompt files (runs/<run>/prompt.safetensors) with text "
        "vectors, or logs of rows with a codebook.",
    )


def text_numbers(prompt: Prompt) -> FloatArray | None:
    """Return all numbers of the learned vectors at the text tower's input, folded.

    None if there are none, or if they are stored relative to the template's words and the backbone
    does not ship with this package.
    """
    words = start_numbers(prompt)
    on_words = any(isinstance(layer, LowRank) and layer.base == "template"
                   for layer in getattr(prompt.text, "layers", (prompt.text,)))  # fmt: skip
    if prompt.text is None or (on_words and words is None):
        return None
    nothing = np.zeros((0, prompt.backbone.text_width), dtype=np.float32)
    context = fold_text(prompt.text, nothing if words is None else words).context
    return None if context is None else context.ravel()


def start_numbers(prompt: Prompt) -> FloatArray | None:
    """Return the token embeddings (M', D) of the template that training started from.

    None if the backbone does not ship with this package; a report downloads nothing.
    """
    template = prompt.training.get("template")
    if prompt.backbone.id not in (EMBEDDED, EMBEDDED_VIT) or not isinstance(template, str):
        return None
    words, fingerprint = _words(prompt.backbone.id, template)
    return words if fingerprint == prompt.backbone.fingerprint else None


@cache
def _words(name: str, template: str) -> tuple[FloatArray, str]:
    backbone = load_backbone(name)
    ids = template_ids(backbone.tokenizer, template)
    return backbone.token_embedding[ids].cpu().numpy(), backbone.ref.fingerprint


def _histograms(
    runs: Sequence[StoredRun],
    options: ReportOptions,
    row_styles: Mapping[str, Style],
    title: str,
    number: int,
) -> list[Block]:
    found: dict[str, FloatArray] = {}
    coded: dict[str, bool] = {}
    start: FloatArray | None = None
    dataset, shown = _of_one_dataset(runs, options)
    for run in shown:
        if run.result.label in found or (prompt := run.prompt) is None:
            continue
        if (numbers := text_numbers(prompt)) is not None and prompt.text is not None:
            found[run.result.label] = numbers
            coded[run.result.label] = any(
                isinstance(tensor, QuantizedTensor) for tensor in prompt.text.tensors().values()
            )
            words = start_numbers(prompt)
            start = start if words is None else words.ravel()
    found = _first(found, shown)
    if not found:
        return []
    everything = np.concatenate([*found.values(), *([] if start is None else [start])])
    low, high = np.quantile(everything, [OUTSIDE / 2, 1 - OUTSIDE / 2]).tolist()
    edges = np.linspace(low, high + 1e-9, BINS + 1)

    def paint(figure: "Figure") -> None:
        columns = min(4, max(2, len(found)))
        for axes, (label, numbers) in zip(
            panels(figure, len(found), columns, sharex=True), found.items(), strict=True
        ):
            values, counts = np.unique(numbers, return_counts=True)
            if len(values) <= FEW_VALUES:
                axes.vlines(values, 0, 100 * counts / len(numbers), color=row_styles[label].color,
                            linewidth=2.5)  # fmt: skip
            else:
                shares = 100 * np.histogram(numbers, edges)[0] / len(numbers)
                axes.stairs(shares, edges, fill=True, color=row_styles[label].color, alpha=0.75)
            if start is not None:
                shares = 100 * np.histogram(start, edges)[0] / len(start)
                axes.stairs(shares, edges, color=GRAY, linewidth=0.9)
            axes.set_title(name_of(label, 30))
            axes.set_ylim(bottom=0)
            axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            axes.locator_params(axis="x", nbins=4)
        figure.supxlabel("value", fontsize=8)
        figure.supylabel("share of numbers (%)", fontsize=8)

    seed = next(iter(shown)).result.seed
    against = (
        "The gray line shows the starting point, the template's words."
        if start is not None
        else "The starting point is not shown: the backbone does not ship with prompt-serve."
    )
    return [
        Chart(
            title=f"Learned numbers: {title}, {dataset}, seed {seed}",
            svg=draw(paint, name=f"weights{number}", height=0.5 + 1.6 * -(-len(found) // 4)),
            alt="histograms of the learned numbers at the text tower's input, one panel per row",
            caption=f"Learned vectors at the text tower's input, one panel per row; a row with a "
            f"codebook has as many distinct values as the codebook. {against} The outermost "
            f"{100 * OUTSIDE:g} % of all numbers are outside the axis.",
            tables=[_moments(found, coded, start, title)],
        )
    ]


def _first(found: Mapping[str, FloatArray], runs: Sequence[StoredRun]) -> dict[str, FloatArray]:
    """Return at most ``PANELS`` rows: first those the paper compares, then the others in order."""
    methods = {run.result.label: run.result.method for run in runs}
    ranked = sorted(found, key=lambda label: methods[label] not in (PLAIN, CODED))
    chosen = set(ranked[:PANELS])
    return {label: numbers for label, numbers in found.items() if label in chosen}


def _moments(
    found: Mapping[str, FloatArray],
    coded: Mapping[str, bool],
    start: FloatArray | None,
    title: str,
) -> ReportTable:
    every = {**({} if start is None else {"start (the template's words)": start}), **found}
    return ReportTable(
        caption=f"Learned numbers: {title}",
        headers=["", "numbers", "values", "mean", "std", "least", "largest", "codebook"],
        rows=[
            [
                label,
                f"{len(x):,}",
                f"{len(np.unique(x)):,}",
                *(f"{v:.5f}" for v in (x.mean(), x.std(), x.min(), x.max())),
                "yes" if coded.get(label) else "",
            ]
            for label, x in every.items()
        ],
    )


def _trends(
    runs: Sequence[StoredRun],
    options: ReportOptions,
    row_styles: Mapping[str, Style],
    title: str,
    number: int,
) -> list[Block]:
    """Build the chart of KL divergence by epoch, with a marker where codebooks were rebuilt."""
    watched = [r for r in runs if any(DIVERGENCE in record.facts for record in r.history)]
    dataset, shown = _of_one_dataset(watched, options, one_seed=False)
    labels = list(dict.fromkeys(run.result.label for run in shown))[:PANELS]
    if not labels:
        return []

    def paint(figure: "Figure") -> None:
        columns = min(4, max(2, len(labels)))
        for axes, label in zip(
            panels(figure, len(labels), columns, sharex=True, sharey=True), labels, strict=True
        ):
            for run in shown:
                if run.result.label == label:
                    _trend(axes, run, row_styles[label])
            whole_steps(axes)
            axes.set_title(name_of(label, 30))
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel("KL divergence (nats)", fontsize=8)

    return [
        Chart(
            title=f"Divergence from the codebooks: {title}, {dataset}",
            svg=draw(paint, name=f"trends{number}", height=0.5 + 1.6 * -(-len(labels) // 4)),
            alt="KL divergence of the code histogram by epoch, one panel per row, one line per "
            "seed, a marker where the codebook was rebuilt",
            caption="KL divergence of the current code histogram from the one at the time the "
            "codebook was built, at the last check of each epoch; the largest value if there are "
            "several codebooks. One line per seed; a marker where a codebook was rebuilt in that "
            "epoch; the dashed line is the divergence that triggers a rebuild.",
            tables=[_trend_table(watched, title)],
        )
    ]


def _trend(axes, run: StoredRun, style: Style) -> None:  # type: ignore[no-untyped-def]  # matplotlib's axes
    records = [record for record in run.history if DIVERGENCE in record.facts]
    epochs = [record.epoch + 1 for record in records]
    values = [float(record.facts[DIVERGENCE]) for record in records]
    axes.plot(epochs, values, color=style.color, linewidth=0.9, alpha=0.85)
    before, marks = 0, []
    for record, value in zip(records, values, strict=True):
        if int(record.facts.get(RECLUSTERINGS, 0)) > before:
            marks.append((record.epoch + 1, value))
        before = int(record.facts.get(RECLUSTERINGS, 0))
    axes.plot([x for x, _ in marks], [y for _, y in marks], style.mark, color=style.color,
              markersize=3.5, markeredgewidth=0)  # fmt: skip
    threshold = run.result.config.get("recluster_above")
    if isinstance(threshold, int | float) and math.isfinite(threshold):
        axes.axhline(threshold, color=PALE, linestyle="--", linewidth=1, zorder=1)


def _trend_table(runs: Sequence[StoredRun], title: str) -> ReportTable:
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(run.result.label, []).append(run)
    rows = []
    for label, selected in groups.items():
        made = [int(run.history[-1].facts.get(RECLUSTERINGS, 0)) for run in selected]
        ends = [float(run.history[-1].facts.get(DIVERGENCE, 0.0)) for run in selected]
        largest = [
            max(float(record.facts.get(DIVERGENCE, 0.0)) for record in run.history)
            for run in selected
        ]
        rows.append(
            [
                label,
                str(len(selected)),
                f"{statistics.fmean(made):.2f}",
                str(max(made)),
                f"{statistics.fmean(largest):.4f}",
                f"{statistics.fmean(ends):.4f}",
            ]
        )
    return ReportTable(
        caption=f"Codebooks, all datasets and seeds: {title}",
        headers=["", "runs", "rebuilt (mean)", "(most)", "largest KL (mean)", "last KL (mean)"],
        rows=rows,
    )


def _of_one_dataset(
    runs: Sequence[StoredRun], options: ReportOptions, *, one_seed: bool = True
) -> tuple[str, list[StoredRun]]:
    """Return runs of the first requested or available dataset, by default of its first seed."""
    datasets = options.chosen_datasets(runs)
    selected = [run for run in runs if run.result.dataset in datasets[:1]]
    if one_seed and selected:
        seed = min(run.result.seed for run in selected)
        selected = [run for run in selected if run.result.seed == seed]
    return "".join(datasets[:1]), selected
