"""Paired comparisons of methods on IconBench, with the claims that the runs cannot test.

    python -m benchmarks.iconbench_findings docs/results/iconbench docs/results/iconbench-vit \\
        --document docs/protocols.md

The run folders are those of ``prompt-serve reproduce ... --bench icon``. Rows are compared in pairs
of equal dataset and seed; the interval is a bootstrap over datasets and seeds.
"""

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.methods_table import put
from prompt_serve.errors import ConfigInvalid
from prompt_serve.research.protocols.comparison import compare_with_papers
from prompt_serve.research.protocols.comparison_tables import as_markdown
from prompt_serve.research.protocols.paired import PairedComparison, compare_rows
from prompt_serve.research.protocols.results import Result, read_results
from prompt_serve.research.protocols.summary import (
    AVERAGE,
    BASE,
    BASE_TO_NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    HARMONIC,
    NEW,
    TEST,
)
from prompt_serve.research.reports.density import RunPoint, centered, spearman
from prompt_serve.research.reports.key_results import limitations

PTQ = "CoOp, 1 bit afterwards"
WIDTH = 120  # characters per line of sentences
TEXT, IMAGE = "embedded", "embedded-vit"


@dataclass(frozen=True, kw_only=True)
class RowPair:
    """Comparison of two rows, one of which a paper finds better."""

    backbone: str
    protocol: str
    label: str
    other: str
    test_sets: tuple[str, ...]
    untested: bool = False  # the runs cannot test the paper's claim


PAIRS = (
    RowPair(
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="DIP",
        other="CoOp",
        test_sets=(NEW, BASE, HARMONIC),
    ),
    RowPair(
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="DIP, dropout 0.2",
        other="DIP",
        test_sets=(NEW, HARMONIC),
    ),
    RowPair(
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="QCoOp, 1 bit",
        other=PTQ,
        test_sets=(BASE, NEW, HARMONIC),
        untested=True,
    ),
    RowPair(
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="QCoOp, 1 bit",
        other="CoOp",
        test_sets=(BASE, NEW, HARMONIC),
    ),
    RowPair(
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="CoOp",
        other="zero-shot",
        test_sets=(BASE, NEW, HARMONIC),
    ),
    RowPair(
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="KgCoOp",
        other="CoOp",
        test_sets=(BASE, NEW, HARMONIC),
    ),
    RowPair(
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="PromptSRC, text side",
        other="CoOp, depth 4",
        test_sets=(BASE, NEW, HARMONIC),
    ),
    RowPair(
        backbone=TEXT,
        protocol=CROSS_DATASET,
        label="DIP",
        other="CoOp",
        test_sets=(AVERAGE,),
    ),
    RowPair(
        backbone=TEXT,
        protocol=DOMAIN_GENERALIZATION,
        label="DIP",
        other="CoOp",
        test_sets=(AVERAGE,),
    ),
    RowPair(
        backbone=TEXT,
        protocol=CROSS_DATASET,
        label="CoOp",
        other="zero-shot",
        test_sets=(AVERAGE,),
    ),
    RowPair(
        backbone=TEXT,
        protocol=DOMAIN_GENERALIZATION,
        label="CoOp",
        other="zero-shot",
        test_sets=(AVERAGE,),
    ),
    RowPair(
        backbone=IMAGE,
        protocol=FEW_SHOT,
        label="ADAPT, T = 32",
        other="CoOp",
        test_sets=(TEST,),
        untested=True,
    ),
    RowPair(
        backbone=IMAGE,
        protocol=FEW_SHOT,
        label="ADAPT, T = 32",
        other="MaPLe",
        test_sets=(TEST,),
        untested=True,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders or results files")
    parser.add_argument("--document", type=Path, help="Markdown file to update")
    arguments = parser.parse_args()
    results = [result for run in arguments.runs for result in read_results(run)]
    text = "\n".join([*tables(results), *findings(results)])
    print(text)
    if arguments.document:
        put(arguments.document, "iconbench", text)


def tables(results: Sequence[Result]) -> Iterator[str]:
    """Yield the averages of every protocol; single datasets are in the results files."""
    for table in compare_with_papers(results):
        averaged = table.protocol in (BASE_TO_NEW, FEW_SHOT)
        yield as_markdown(table.only(AVERAGE) if averaged else table)


def findings(results: Sequence[Result]) -> Iterator[str]:
    """Yield the table of paired comparisons, then the claims that the runs cannot test."""
    yield "| protocol | comparison | points | 95 % interval | wins, ties, losses | p | result |"
    yield "|---|---|--:|---|---|--:|---|"
    for pair in PAIRS:
        for test_set in pair.test_sets:
            found = _paired(pair, results, test_set)
            if found:
                yield _line(pair, found)
    yield ""
    yield "Rank correlation of information density and accuracy on new classes, all methods pooled:"
    yield ""
    yield from _densities(results)
    yield ""
    yield "Not tested by these runs:"
    yield ""
    for text in limitations(results):
        yield from textwrap.wrap(
            text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )


def _paired(pair: RowPair, results: Sequence[Result], test_set: str) -> PairedComparison | None:
    selected = [
        one
        for one in results
        if (one.protocol, one.backbone["id"]) == (pair.protocol, pair.backbone)
    ]
    try:
        return compare_rows(selected, pair.label, pair.other, test_set=test_set)
    except ConfigInvalid:
        return None


def _line(pair: RowPair, found: PairedComparison) -> str:
    outcome = "undecided"
    if found.excludes_zero:
        outcome = "higher" if found.difference > 0 else "lower"
    cells = [
        pair.protocol,
        f"{found.label} - {found.other}, {found.test_set}",
        f"{100 * found.difference:+.2f}",
        f"{100 * found.low:+.2f} to {100 * found.high:+.2f}",
        f"{found.wins}, {found.ties}, {found.losses}",
        f"{found.dataset_p:.2g}",
        "not a test" if pair.untested else outcome,
    ]
    return f"| {' | '.join(cells)} |"


def _densities(results: Sequence[Result]) -> Iterator[str]:
    selected = [
        one
        for one in results
        if (one.protocol, one.backbone["id"]) == (BASE_TO_NEW, TEXT) and one.idk
    ]
    for k in (1, 2):
        points = [
            RunPoint(
                dataset=one.dataset,
                label=one.label,
                seed=one.seed,
                density=one.idk[k - 1],
                accuracy=one.accuracy[NEW],
            )
            for one in selected
            if len(one.idk) > k
        ]
        within = centered(points)
        for title, chosen in (("all runs", points), ("each less its dataset's mean", within)):
            found = spearman(chosen)
            if found:
                yield (
                    f"- ID_{k} against new-class accuracy, {title}: rho = {found.rho:+.2f} "
                    f"(p = {found.p:.2g}, {found.points} runs)"
                )


if __name__ == "__main__":
    main()
