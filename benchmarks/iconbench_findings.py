"""What holds on IconBench, of what the papers claim: each claim with the figure that decides it.

    python -m benchmarks.iconbench_findings docs/results/iconbench docs/results/iconbench-vit \\
        --document docs/protocols.md

The run folders are those of ``prompt-serve reproduce ... --bench icon``. Rows are held against each
other dataset by dataset and seed by seed; the interval is a bootstrap over datasets and seeds.
"""

import argparse
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

PTQ = "CoOp, 1 bit afterwards"
TEXT, IMAGE = "embedded", "embedded-vit"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row that a paper puts over another one."""

    question: str
    backbone: str
    protocol: str
    label: str
    other: str
    test_sets: tuple[str, ...]


CLAIMS = (
    Claim(
        question="Does DIP lift new classes over CoOp at equal epochs?",
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="DIP",
        other="CoOp",
        test_sets=(NEW, BASE, HARMONIC),
    ),
    Claim(
        question="Does dropout help DIP on new classes?",
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="DIP, dropout 0.2",
        other="DIP",
        test_sets=(NEW, HARMONIC),
    ),
    Claim(
        question="Does quantizing while learning beat quantizing afterwards, at one bit?",
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="QCoOp, 1 bit",
        other=PTQ,
        test_sets=(BASE, NEW, HARMONIC),
    ),
    Claim(
        question="Does one bit lift new classes over CoOp?",
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="QCoOp, 1 bit",
        other="CoOp",
        test_sets=(BASE, NEW, HARMONIC),
    ),
    Claim(
        question="Does CoOp gain on base classes what it loses on new ones, against the template?",
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="CoOp",
        other="zero-shot",
        test_sets=(BASE, NEW, HARMONIC),
    ),
    Claim(
        question="Does staying near the template keep new classes (KgCoOp)?",
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="KgCoOp",
        other="CoOp",
        test_sets=(BASE, NEW, HARMONIC),
    ),
    Claim(
        question="Does it in four blocks, with averaged epochs (PromptSRC)?",
        backbone=TEXT,
        protocol=BASE_TO_NEW,
        label="PromptSRC, text side",
        other="CoOp, depth 4",
        test_sets=(BASE, NEW, HARMONIC),
    ),
    Claim(
        question="Do DIP's prompts transfer better than CoOp's?",
        backbone=TEXT,
        protocol=CROSS_DATASET,
        label="DIP",
        other="CoOp",
        test_sets=(AVERAGE,),
    ),
    Claim(
        question="Do DIP's prompts do better than CoOp's on unseen styles?",
        backbone=TEXT,
        protocol=DOMAIN_GENERALIZATION,
        label="DIP",
        other="CoOp",
        test_sets=(AVERAGE,),
    ),
    Claim(
        question="Do CoOp's prompts do better than the template on other tasks?",
        backbone=TEXT,
        protocol=CROSS_DATASET,
        label="CoOp",
        other="zero-shot",
        test_sets=(AVERAGE,),
    ),
    Claim(
        question="And on other styles?",
        backbone=TEXT,
        protocol=DOMAIN_GENERALIZATION,
        label="CoOp",
        other="zero-shot",
        test_sets=(AVERAGE,),
    ),
    Claim(
        question="Does ADAPT win few-shot over CoOp and MaPLe?",
        backbone=IMAGE,
        protocol=FEW_SHOT,
        label="ADAPT, T = 32",
        other="CoOp",
        test_sets=(TEST,),
    ),
    Claim(
        question="",
        backbone=IMAGE,
        protocol=FEW_SHOT,
        label="ADAPT, T = 32",
        other="MaPLe",
        test_sets=(TEST,),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders or results files")
    parser.add_argument("--document", type=Path, help="Markdown file to put it into")
    arguments = parser.parse_args()
    results = [result for run in arguments.runs for result in read_results(run)]
    text = "\n".join([*tables(results), *findings(results)])
    print(text)
    if arguments.document:
        put(arguments.document, "iconbench", text)


def tables(results: Sequence[Result]) -> Iterator[str]:
    """Averages of every protocol; the datasets one by one are in the results files."""
    for table in compare_with_papers(results):
        averaged = table.protocol in (BASE_TO_NEW, FEW_SHOT)
        yield as_markdown(table.only(AVERAGE) if averaged else table)


def findings(results: Sequence[Result]) -> Iterator[str]:
    """One table of all claims."""
    yield "| question | difference in points | 95 % interval | wins, ties, losses | p | holds |"
    yield "|---|---|---|---|---|---|"
    for claim in CLAIMS:
        for number, test_set in enumerate(claim.test_sets):
            found = _paired(claim, results, test_set)
            if found:
                yield _line(claim.question if number == 0 else "", found)
    yield ""
    yield from _densities(results)


def _paired(claim: Claim, results: Sequence[Result], test_set: str) -> PairedComparison | None:
    own = [
        one
        for one in results
        if (one.protocol, one.backbone["id"]) == (claim.protocol, claim.backbone)
    ]
    try:
        return compare_rows(own, claim.label, claim.other, test_set=test_set)
    except ConfigInvalid:
        return None


def _line(question: str, found: PairedComparison) -> str:
    holds = (
        "not decided"
        if not found.excludes_zero
        else "yes"
        if found.difference > 0
        else "no, contrary"
    )
    cells = [
        f"{question} {found.label} - {found.other}, {found.test_set}".strip(),
        f"{100 * found.difference:+.2f}",
        f"{100 * found.low:+.2f} to {100 * found.high:+.2f}",
        f"{found.wins}, {found.ties}, {found.losses}",
        f"{found.dataset_p:.2g}",
        holds,
    ]
    return f"| {' | '.join(cells)} |"


def _densities(results: Sequence[Result]) -> Iterator[str]:
    own = [
        one
        for one in results
        if (one.protocol, one.backbone["id"]) == (BASE_TO_NEW, TEXT) and one.idk
    ]
    for k in (1, 2):
        dots = [
            RunPoint(
                dataset=one.dataset,
                label=one.label,
                seed=one.seed,
                density=one.idk[k - 1],
                accuracy=one.accuracy[NEW],
            )
            for one in own
            if len(one.idk) > k
        ]
        for title, chosen in (("all runs", dots), ("each less its dataset's mean", centered(dots))):
            found = spearman(chosen)
            if found:
                yield (
                    f"- ID_{k} against new-class accuracy, {title}: rho = {found.rho:+.2f} "
                    f"(p = {found.p:.2g}, {found.points} runs)"
                )


if __name__ == "__main__":
    main()
