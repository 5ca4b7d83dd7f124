"""Learned numbers as histograms, and how codebooks follow them (Quantized Prompt, Figs. 3, 6)."""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from prompt_serve.prompts.encodings import LowRank
from prompt_serve.prompts.folding import fold_text
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.quantized_tensor import Coded
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
from prompt_serve.research.reports.page import Block, Chart, Section, Table
from prompt_serve.research.reports.report_options import Choice, most_shots
from prompt_serve.research.reports.stored_runs import StoredRun, by_comparison
from prompt_serve.training.clip.backbone import EMBEDDED, EMBEDDED_VIT, load_backbone
from prompt_serve.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 8
BINS = 48
OUTSIDE = 0.004  # share of all numbers that the axis leaves out: a few of 100 times the size
FEW_VALUES = 32  # so many different numbers are drawn as lines, not counted in bins
PLAIN, CODED = "coop", "qcoop"  # what the paper compares
DIVERGENCE, RECLUSTERINGS = "code_divergence", "reclusterings"


def weights(runs: Sequence[StoredRun], choice: Choice) -> Section:
    """Histograms of the numbers and trends of the codebooks, for each table."""
    blocks: list[Block] = []
    for number, (key, group) in enumerate(by_comparison(runs).items()):
        looks = styles(run.result.label for run in group)
        own = most_shots(group)
        blocks += _histograms(own, choice, looks, title_of(*key), number)
        blocks += _trends(own, choice, looks, title_of(*key), number)
    return Section(
        anchor="weights",
        title="Learned numbers and their codebooks",
        after="Quantized Prompt Figures 3 and 6",
        blocks=blocks,
        missing=""
        if blocks
        else "Left out: it wants prompt files (runs/<run>/prompt.safetensors) with vectors of the "
        "text tower, or logs of rows that are learned through a codebook.",
    )


def text_numbers(prompt: Prompt) -> FloatArray | None:
    """All numbers of the text tower's first learned vectors, as they are used.

    None where there are none, or where they build on the template's words and the backbone that
    knows them is not part of this package.
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
    """(M', D) token embeddings of the template that learning started from; None where the backbone
    is not part of this package: nothing is fetched for a report."""
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
    runs: Sequence[StoredRun], choice: Choice, looks: Mapping[str, Style], title: str, number: int
) -> list[Block]:
    found: dict[str, FloatArray] = {}
    coded: dict[str, bool] = {}
    start: FloatArray | None = None
    dataset, shown = _of_one_dataset(runs, choice)
    for run in shown:
        if run.result.label in found or (prompt := run.prompt) is None:
            continue
        if (numbers := text_numbers(prompt)) is not None and prompt.text is not None:
            found[run.result.label] = numbers
            coded[run.result.label] = any(
                isinstance(tensor, Coded) for tensor in prompt.text.tensors().values()
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
                axes.vlines(values, 0, 100 * counts / len(numbers), color=looks[label].color,
                            linewidth=2.5)  # fmt: skip
            else:
                shares = 100 * np.histogram(numbers, edges)[0] / len(numbers)
                axes.stairs(shares, edges, fill=True, color=looks[label].color, alpha=0.75)
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
        "The gray line is where learning starts, the template's words."
        if start is not None
        else "Where learning starts is not shown: the backbone is not part of prompt-serve."
    )
    return [
        Chart(
            title=f"Learned numbers: {title}, {dataset}, seed {seed}",
            svg=draw(paint, name=f"weights{number}", height=0.5 + 1.6 * -(-len(found) // 4)),
            alt="histograms of the learned numbers of the text tower's first vectors, a panel for "
            "each row",
            caption=f"Vectors of the text tower's input as they are used, a panel a row; a row "
            f"with a codebook has as many values as the codebook. {against} The outermost "
            f"{100 * OUTSIDE:g} % of all numbers lie outside.",
            tables=[_moments(found, coded, start, title)],
        )
    ]


def _first(found: Mapping[str, FloatArray], runs: Sequence[StoredRun]) -> dict[str, FloatArray]:
    """At most ``PANELS``: those the paper compares first, then the others in their order."""
    methods = {run.result.label: run.result.method for run in runs}
    ranked = sorted(found, key=lambda label: methods[label] not in (PLAIN, CODED))
    kept = set(ranked[:PANELS])
    return {label: numbers for label, numbers in found.items() if label in kept}


def _moments(
    found: Mapping[str, FloatArray],
    coded: Mapping[str, bool],
    start: FloatArray | None,
    title: str,
) -> Table:
    every = {**({} if start is None else {"start (the template's words)": start}), **found}
    return Table(
        caption=f"Learned numbers: {title}",
        heads=["", "numbers", "values", "mean", "std", "least", "largest", "codebook"],
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
    runs: Sequence[StoredRun], choice: Choice, looks: Mapping[str, Style], title: str, number: int
) -> list[Block]:
    """KL divergence by epoch; a mark where codebooks were made anew."""
    watched = [r for r in runs if any(DIVERGENCE in record.facts for record in r.history)]
    dataset, shown = _of_one_dataset(watched, choice, one_seed=False)
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
                    _trend(axes, run, looks[label])
            whole_steps(axes)
            axes.set_title(name_of(label, 30))
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel("KL divergence (nats)", fontsize=8)

    return [
        Chart(
            title=f"Codebooks and what they stand for: {title}, {dataset}",
            svg=draw(paint, name=f"trends{number}", height=0.5 + 1.6 * -(-len(labels) // 4)),
            alt="KL divergence of the histogram of codes by epoch, a panel for each row, a line "
            "for each seed, a mark where the codebook was made anew",
            caption="KL divergence of the codes' histogram now from that when the codebook was "
            "made, at the last look before the end of each epoch; the largest where there are "
            "several codebooks. A line a seed; a mark where a codebook was made anew in that "
            "epoch; dashed, the divergence that asks for it.",
            tables=[_trend_table(watched, title)],
        )
    ]


def _trend(axes, run: StoredRun, look: Style) -> None:  # type: ignore[no-untyped-def]  # matplotlib's axes
    records = [record for record in run.history if DIVERGENCE in record.facts]
    epochs = [record.epoch + 1 for record in records]
    values = [float(record.facts[DIVERGENCE]) for record in records]
    axes.plot(epochs, values, color=look.color, linewidth=0.9, alpha=0.85)
    before, marks = 0, []
    for record, value in zip(records, values, strict=True):
        if int(record.facts.get(RECLUSTERINGS, 0)) > before:
            marks.append((record.epoch + 1, value))
        before = int(record.facts.get(RECLUSTERINGS, 0))
    axes.plot([x for x, _ in marks], [y for _, y in marks], look.mark, color=look.color,
              markersize=3.5, markeredgewidth=0)  # fmt: skip
    threshold = run.result.config.get("recluster_above")
    if isinstance(threshold, int | float) and math.isfinite(threshold):
        axes.axhline(threshold, color=PALE, linestyle="--", linewidth=1, zorder=1)


def _trend_table(runs: Sequence[StoredRun], title: str) -> Table:
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(run.result.label, []).append(run)
    rows = []
    for label, own in groups.items():
        made = [int(run.history[-1].facts.get(RECLUSTERINGS, 0)) for run in own]
        ends = [float(run.history[-1].facts.get(DIVERGENCE, 0.0)) for run in own]
        largest = [
            max(float(record.facts.get(DIVERGENCE, 0.0)) for record in run.history) for run in own
        ]
        rows.append(
            [
                label,
                str(len(own)),
                f"{statistics.fmean(made):.2f}",
                str(max(made)),
                f"{statistics.fmean(largest):.4f}",
                f"{statistics.fmean(ends):.4f}",
            ]
        )
    return Table(
        caption=f"Codebooks, all datasets and seeds: {title}",
        heads=["", "runs", "made anew (mean)", "(most)", "largest KL (mean)", "last KL (mean)"],
        rows=rows,
    )


def _of_one_dataset(
    runs: Sequence[StoredRun], choice: Choice, *, one_seed: bool = True
) -> tuple[str, list[StoredRun]]:
    """Runs of the first dataset that is asked for, or there; of its first seed alone."""
    datasets = choice.chosen_datasets(runs)
    own = [run for run in runs if run.result.dataset in datasets[:1]]
    if one_seed and own:
        seed = min(run.result.seed for run in own)
        own = [run for run in own if run.result.seed == seed]
    return "".join(datasets[:1]), own
