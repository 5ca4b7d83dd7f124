"""One-screen summary of the page: its readers, the main results, and the limits of the runs."""

import math
from collections.abc import Iterable, Iterator, Sequence

from prompt_serve.evaluation_report.markup import percent
from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.schedules import paper_settings
from prompt_serve.research.protocols.summary import (
    AVERAGE,
    BASE_TO_NEW,
    FEW_SHOT,
    HARMONIC,
    TEST,
    Summary,
    TableRow,
    comparison_of,
)
from prompt_serve.research.reports.accuracy import (
    ZERO_SHOT,
    headline,
    headline_rows,
    points,
)
from prompt_serve.research.reports.overview import PROTOCOLS
from prompt_serve.research.reports.page import Block, Cell, ReportTable, Section, Text
from prompt_serve.research.reports.stored_runs import StoredRun

FEW_STEPS = 1_000  # within fewer steps, a codebook is hardly updated
PRETRAINED = ", on styles that the backbone was pretrained on"  # training images of IconBench


def summary_section(runs: Sequence[StoredRun], summaries: Sequence[Summary]) -> Section:
    """Build the summary: readers, one line of results per table, limits of the runs."""
    rows = [
        line for summary in summaries for shots in summary.shots for line in _line(summary, shots)
    ]
    blocks: list[Block] = [
        ReportTable(
            caption="Main results",
            headers=["protocol", "backbone", "shots", "zero-shot", "best learned row", "accuracy",
                     "better than zero-shot", "measure (%)"],
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
        _cell(reference, measure),
        best.label,
        _cell(best, measure, reference),
        _better(learned, measure, reference),
        _measure(summary),
    ]


def _measure(summary: Summary) -> str:
    count = len(summary.datasets)
    over = f"{count} datasets" if count > 1 else "one dataset"
    return {
        HARMONIC: f"H, {over}",
        AVERAGE: "average of targets",
        TEST: f"test accuracy, {over}",
    }[headline(summary)]


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
    return f"{count} of {len(learned)} rows"


def _density(results: Sequence[Result]) -> Iterator[str]:
    if len({one.label for one in results if one.protocol == BASE_TO_NEW and one.idk}) > 1:
        yield (
            "Information density and accuracy on new classes (DIP, Figure 1). Not a test of the "
            "paper's claim, because the paper follows one run over training, and these results "
            "pool finished runs of different methods."
        )


def _pruning(results: Sequence[Result]) -> Iterator[str]:
    short = [
        one
        for one in results
        if (one.method, one.protocol) == ("adapt", FEW_SHOT)
        and one.config.get("epochs", math.inf) < _paper_epochs(one)
    ]
    if short:
        rows = _range(one.config.get("tokens_per_block") or 0 for one in short)
        yield (
            f"Few-shot accuracy of ADAPT. Not a test of the paper's claim, because its {rows} "
            f"random rows per block were trained for {_range(map(_steps, short))} steps; the paper "
            f"trains for {_range(map(_paper_epochs, short))} epochs."
        )


def _codebooks(results: Sequence[Result]) -> Iterator[str]:
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for one in results:
        if one.config.get("bits") and 0 < _steps(one) < FEW_STEPS:
            groups.setdefault(comparison_of(one), []).append(one)
    lengths: dict[str, None] = {}
    seen = True
    for (protocol, suite, _), runs in groups.items():
        trained = [one for one in runs if one.config.get("quantization") == "qat"]
        if trained and any(one.config.get("quantization") == "ptq" for one in runs):
            checks = _range(_steps(one) // one.config["recluster_interval"] for one in trained)
            lengths[
                f"{_range(map(_steps, trained))} steps with {checks} checks of the codebook "
                f"({PROTOCOLS.get(protocol, protocol)})"
            ] = None
            seen = seen and suite == "icon"
    if lengths:
        yield (
            f"Quantization during training against quantization afterwards (Quantized Prompt, "
            f"Table 5). Not a test of the paper's claim, because the rows were trained for "
            f"{', '.join(lengths)}{PRETRAINED if seen else ''}."
        )


def _paper_epochs(result: Result) -> int:
    """Number of epochs that the paper trains the method for in few-shot learning."""
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
