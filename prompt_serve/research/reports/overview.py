"""Overview of the runs, and caveats for comparing their rows."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from prompt_serve.errors import counted
from prompt_serve.evaluation_report.markup import percent
from prompt_serve.research.protocols.fairness import fairness_notes
from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import (
    BASE_TO_NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    TRANSFER,
    Summary,
)
from prompt_serve.research.reports.page import Block, ReportTable, Section, Text
from prompt_serve.research.reports.stored_runs import StoredRun, by_comparison

PROTOCOLS = {
    BASE_TO_NEW: "base to new",
    FEW_SHOT: "few-shot",
    CROSS_DATASET: "cross-dataset transfer",
    DOMAIN_GENERALIZATION: "domain generalization",
}
FEW_IMAGES = 200  # one image is half a point
ENOUGH_SEEDS = 3


def title_of(protocol: str, suite: str, backbone: str) -> str:
    """Return the title of a table."""
    return f"{PROTOCOLS.get(protocol, protocol)}, suite {suite}, backbone {backbone}"


def overview_section(runs: Sequence[StoredRun], summaries: Sequence[Summary]) -> Section:
    """Build the section on runs, backbones, versions and caveats."""
    groups = by_comparison(runs)
    rows = []
    for (protocol, suite, backbone), group in groups.items():
        results = [run.result for run in group]
        rows.append(
            [
                PROTOCOLS.get(protocol, protocol),
                suite,
                backbone,
                _joined(r.dataset for r in results),
                _joined(r.label for r in results),
                _joined(r.shots for r in results),
                _joined(r.seed for r in results),
                f"{len(results):,}",
            ]
        )
    what = ReportTable(
        caption="Runs",
        headers=["protocol", "suite", "backbone", "datasets", "rows", "shots", "seeds", "prompts"],
        rows=rows,
        words=True,
    )
    blocks: list[Block] = [
        what,
        _backbones(runs),
        _environments(runs),
        Text(
            title="Before comparing rows",
            lines=notes(runs, summaries) or ["No difference other than the methods was found."],
        ),
    ]
    return Section(anchor="runs", title="What was run", blocks=blocks)


def notes(runs: Sequence[StoredRun], summaries: Sequence[Summary]) -> list[str]:
    """Return differences between rows other than their methods, and limits of the figures."""
    found = []
    groups = by_comparison(runs)
    several = len({backbone for _, _, backbone in groups}) > 1
    if several:
        found.append(
            "There are several backbones. Their rows are in separate tables; figures on one "
            "backbone cannot be compared with figures on another."
        )
    for (protocol, _, backbone), group in groups.items():
        where = f"{PROTOCOLS.get(protocol, protocol)} on {backbone}"
        results = [run.result for run in group]
        apart = f"{backbone}: " if several else ""
        found += [f"{apart}{note}" for note in fairness_notes(results)]
        found += [f"{where}: {note}" for note in _precision(results)]
    for summary in summaries:
        where = f"{PROTOCOLS.get(summary.protocol, summary.protocol)} on {summary.backbone}"
        found += [f"{where}: {note}" for note in _gaps(summary)]
    return found


def _precision(results: Sequence[Result]) -> Iterable[str]:
    """Yield notes on the size of random differences."""
    seeds = {r.seed for r in results}
    if len(seeds) < ENOUGH_SEEDS:
        yield (
            f"{'one seed' if len(seeds) == 1 else f'{len(seeds)} seeds'}; the papers average over "
            f"{ENOUGH_SEEDS}, and a seed alone can change accuracy by a point or two."
        )
    few = {
        (r.dataset, test): r.images[test]
        for r in results
        for test in r.accuracy
        if 0 < r.images.get(test, 0) < FEW_IMAGES
    }
    if few:
        (dataset, test), least = min(few.items(), key=lambda item: item[1])
        have = "has" if len(few) == 1 else "have"
        yield (
            f"{counted(len(few), 'test set')} {have} fewer than {FEW_IMAGES} images; in the "
            f"smallest, {dataset} ({test}) with {least}, one image is worth {percent(1 / least)} "
            f"points."
        )
    if any("eurosat" in r.dataset.lower() for r in results):
        yield "EuroSAT varies by some four points between seeds, in the papers' own code too."


def _gaps(summary: Summary) -> Iterable[str]:
    """Yield targets of a transfer that only some rows have."""
    for row in summary.rows:
        if summary.protocol in TRANSFER and row.partial:
            yield (
                f"{row.label} has no results for the targets {_joined(row.missing)}; its average "
                f"over the others cannot be compared with that of a complete row."
            )


def _backbones(runs: Sequence[StoredRun]) -> ReportTable:
    found = {
        (str(r.backbone.get("id", "")), str(r.backbone.get("fingerprint", "")))
        for r in (run.result for run in runs)
    }
    return ReportTable(
        caption="Backbones",
        headers=["name", "fingerprint (sha256 over the weights)"],
        rows=[[name or "not stated", mark or "not stated"] for name, mark in sorted(found)],
        words=True,
    )


def _environments(runs: Sequence[StoredRun]) -> ReportTable:
    """Build the table of distinct environments, with the number of prompts of each."""
    counts: dict[str, int] = {}
    for run in runs:
        key = json.dumps(dict(run.result.environment), sort_keys=True)
        counts[key] = counts.get(key, 0) + 1
    environments: list[dict[str, Any]] = [json.loads(key) for key in counts]
    names = list(dict.fromkeys(name for one in environments for name in one))
    return ReportTable(
        caption="Versions and machine",
        headers=["", *(counted(count, "prompt") for count in counts.values())],
        rows=[[name, *(str(one.get(name, "–")) for one in environments)] for name in names],
        words=True,
        note="" if names else "The results do not record their environment.",
    )


def _joined(values: Iterable[object]) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))
