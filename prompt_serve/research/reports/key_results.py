"""One-screen summary of the page: its readers, the main results, and the limits of the runs."""

import math
from collections.abc import Iterable, Iterator, Sequence

from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.schedules import paper_settings
from prompt_serve.research.protocols.summary import BASE_TO_NEW, FEW_SHOT, Summary, TableRow
from prompt_serve.research.reports.accuracy import (
    ZERO_SHOT,
    headline,
    headline_name,
    headline_rows,
    points,
)
from prompt_serve.research.reports.overview import PROTOCOLS
from prompt_serve.research.reports.page import Block, Cell, ReportTable, Section, Text, percent
from prompt_serve.research.reports.stored_runs import StoredRun

FEW_STEPS = 1_000  # a codebook in training is hardly updated within fewer steps


def summary_section(runs: Sequence[StoredRun], summaries: Sequence[Summary]) -> Section:
    """Build the summary: readers, one line of results per table, limits of the runs."""
    rows = [
        line for summary in summaries for shots in summary.shots for line in _line(summary, shots)
    ]
    blocks: list[Block] = [
        ReportTable(
            caption="Main results",
            headers=["protocol", "backbone", "shots", "measure (%)", "zero-shot",
                     "best learned row", "accuracy", "better than zero-shot"],
            rows=rows,
            words=True,
            note="The best row is selected on test images here, so its margin is optimistic. Rows "
            "without results for all datasets are not counted.",
        )
    ]  # fmt: skip
    if limits := limitations(run.result for run in runs):
        blocks.append(Text(title="Not tested by these runs", lines=limits))
    return Section(
        anchor="summary",
        title="Summary",
        intro="For readers who compare prompt-learning methods on the datasets below, or who want "
        "to check a figure. The table has one line per protocol, backbone and number of shots.",
        blocks=blocks,
    )


def limitations(results: Iterable[Result]) -> list[str]:
    """Return claims of the papers that the runs cannot test, with the reason."""
    results = tuple(results)
    return [*_density(results), *_pruning(results), *_codebooks(results)]


def _line(summary: Summary, shots: int) -> Iterator[list[Cell | str]]:
    measure = headline(summary)
    rows = [row for row in headline_rows(summary, shots) if not row.partial]
    reference = next((row for row in rows if row.method == ZERO_SHOT), None)
    learned = [row for row in rows if row.method != ZERO_SHOT]
    if not learned:
        return
    best = max(learned, key=lambda row: row.figures[measure].mean)
    yield [
        PROTOCOLS.get(summary.protocol, summary.protocol),
        summary.backbone,
        str(shots),
        headline_name(summary),
        _cell(reference, measure),
        best.label,
        _cell(best, measure, reference),
        _better(learned, measure, reference),
    ]


def _cell(row: TableRow | None, measure: str, reference: TableRow | None = None) -> Cell | str:
    if row is None:
        return "–"
    mean = row.figures[measure].mean
    detail = points(mean - reference.figures[measure].mean) if reference else ""
    return Cell(text=percent(mean), value=mean, detail=detail)


def _better(learned: Sequence[TableRow], measure: str, reference: TableRow | None) -> str:
    if reference is None:
        return "–"
    least = reference.figures[measure].mean
    count = sum(row.figures[measure].mean > least for row in learned)
    return f"{count} of {len(learned)} learned rows"


def _density(results: Sequence[Result]) -> Iterator[str]:
    if len({one.label for one in results if one.protocol == BASE_TO_NEW and one.idk}) > 1:
        yield (
            "Information density and accuracy on new classes (DIP, Figure 1). Not a test of the "
            "paper's claim, because the paper follows one run over training, while this page pools "
            "finished runs of different methods."
        )


def _pruning(results: Sequence[Result]) -> Iterator[str]:
    pruned = [
        one
        for one in results
        if one.method == "adapt" and one.config.get("epochs", math.inf) < _epochs(one)
    ]
    few_shot = [one for one in pruned if one.protocol == FEW_SHOT]
    if few_shot:
        yield (
            f"ADAPT in few-shot learning. Not a test of the paper's claim, because its rows were "
            f"trained for {_range(map(_steps, few_shot))} steps; the paper trains for "
            f"{_range(map(_epochs, few_shot))} epochs, and pruning starts from random rows in "
            f"every block."
        )
    elif pruned:
        yield (
            f"ADAPT. Not a test of the paper's claim, because its rows were trained for "
            f"{_range(map(_steps, pruned))} steps; the paper trains for "
            f"{_range(map(_epochs, pruned))} epochs."
        )


def _codebooks(results: Sequence[Result]) -> Iterator[str]:
    coded = [one for one in results if one.config.get("bits") and one.payload_bytes]
    kinds = {one.config.get("quantization") for one in coded}
    short = [one for one in coded if 0 < _steps(one) < FEW_STEPS]
    if {"qat", "ptq"} <= kinds and short:
        yield (
            f"Quantization during training against quantization afterwards (Quantized Prompt, "
            f"Table 5). Not a test of the paper's claim, because rows with a codebook were trained "
            f"for {_range(map(_steps, short))} steps and check their codebook every "
            f"{_range(one.config['recluster_interval'] for one in short)} steps."
        )


def _epochs(result: Result) -> int:
    return int(paper_settings(FEW_SHOT, result.method, result.dataset, result.shots).settings
               .get("epochs", 0))  # fmt: skip


def _steps(result: Result) -> int:
    """Number of training steps; an epoch drops its last, partial batch."""
    images = result.images.get("train", 0)
    batch = min(int(result.config.get("batch_size") or 32), max(images, 1))
    return int(result.config.get("epochs", 0)) * (images // batch)


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"
