"""Comparison tables: our figures, the papers' where they exist, and the difference."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prompt_serve.research.datasets.suite import Suite
from prompt_serve.research.protocols.comparison_lines import (
    OVER,
    PAPERS,
    ComparisonLine,
    LineBuilder,
)
from prompt_serve.research.protocols.fairness import fairness_notes
from prompt_serve.research.protocols.paper_tables import BACKBONE, DATASETS, DOMAINS
from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.schedules import paper_settings
from prompt_serve.research.protocols.summary import (
    AVERAGE,
    DOMAIN_GENERALIZATION,
    TRANSFER,
    Summary,
    comparison_of,
    latest,
    summarize,
)

_OPENAI = "vit-b-16"  # part of the id of the backbone the papers measured


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Table of one protocol, suite and backbone."""

    protocol: str
    suite: str
    backbone: str
    learned_on: str  # source dataset of a transfer; otherwise ""
    columns: tuple[str, ...]
    lines: tuple[ComparisonLine, ...] = field(repr=False)  # by place, the average last
    missing: Mapping[str, str]  # dataset or test set that is not on disk -> download instructions
    notes: tuple[str, ...]  # full sentences

    @property
    def with_papers(self) -> frozenset[str]:
        """Columns with at least one figure from a paper."""
        return frozenset(
            name
            for line in self.lines
            for name, cell in line.cells.items()
            if cell.theirs is not None
        )

    @property
    def several_shots(self) -> bool:
        """Return True if the lines differ in their number of shots."""
        return len({line.shots for line in self.lines}) > 1

    def only(self, *places: str) -> "Comparison":
        """Return the table restricted to some places, such as AVERAGE."""
        return replace(self, lines=tuple(line for line in self.lines if line.place in places))

    def to_dict(self) -> dict[str, Any]:
        """Return the table in JSON types."""
        return {
            "protocol": self.protocol,
            "suite": self.suite,
            "backbone": self.backbone,
            "learned_on": self.learned_on,
            "columns": list(self.columns),
            "lines": [line.to_dict() for line in self.lines],
            "missing": dict(self.missing),
            "notes": list(self.notes),
        }


def compare_with_papers(
    results: Iterable[Result], suite: Suite | None = None, datasets: Sequence[str] = ()
) -> tuple[Comparison, ...]:
    """Build one table per protocol, suite, backbone and, for transfer, source.

    The papers' figures are shown only for results of the suite "papers". An average over a subset
    of the datasets is compared with the mean of the papers' figures for the same subset, never with
    their average over all datasets.

    Args:
        results: from one or several runs.
        suite: the suite that was run; its missing datasets are listed.
        datasets: requested datasets; only these are listed as missing.
    """
    groups: dict[tuple[tuple[str, str, str], str], list[Result]] = {}
    for one in latest(results):
        source = one.dataset if one.protocol in TRANSFER else ""
        groups.setdefault((comparison_of(one), source), []).append(one)
    return tuple(
        _comparison(group, source, suite, datasets) for (_, source), group in groups.items()
    )


def _comparison(
    results: Sequence[Result], source: str, suite: Suite | None, datasets: Sequence[str]
) -> Comparison:
    protocol, suite_name, backbone = comparison_of(results[0])
    missing = _missing(protocol, suite, datasets) if suite and suite.name == suite_name else {}
    missing.pop(source, None)
    expected = _expected(protocol, suite_name, source)
    (summary,) = summarize(results, expected)
    configs = {(one.label, one.shots): one.config for one in results}
    table = LineBuilder(summary, configs, source, len(expected))
    lines = tuple(table(missing))
    return Comparison(
        protocol=protocol,
        suite=suite_name,
        backbone=backbone,
        learned_on=source,
        columns=table.columns,
        lines=lines,
        missing=missing,
        notes=tuple(_notes(results, summary, lines)),
    )


def _missing(protocol: str, suite: Suite, datasets: Sequence[str]) -> dict[str, str]:
    if protocol == DOMAIN_GENERALIZATION:
        return dict(suite.missing_domains)
    return {name: why for name, why in suite.missing.items() if not datasets or name in datasets}


def _expected(protocol: str, suite: str, source: str) -> tuple[str, ...]:
    """Datasets or domains that a complete average covers; empty: those that any row has."""
    if suite != PAPERS:
        return ()
    if protocol == DOMAIN_GENERALIZATION:
        return DOMAINS
    return tuple(name for name in DATASETS if name != source)


def _notes(
    results: Sequence[Result], summary: Summary, lines: Sequence[ComparisonLine]
) -> Iterator[str]:
    if any(line.place == AVERAGE and line.note.startswith(OVER) and line.source for line in lines):
        yield (
            "An average over a subset of the datasets is compared with the mean of the paper's "
            "figures for the same subset, not with the average that the paper prints."
        )
    if summary.suite == PAPERS:
        if _OPENAI not in summary.backbone.lower():
            yield (
                f"The papers measured OpenAI's {BACKBONE}; these figures were measured on "
                f"{summary.backbone or 'another backbone'}."
            )
        yield from _departures(results)
    yield from fairness_notes(results)


def _departures(results: Sequence[Result]) -> Iterator[str]:
    """Yield the settings of each row that differ from those its paper states."""
    found: dict[str, dict[str, None]] = {}
    for one in results:
        paper = paper_settings(one.protocol, one.method, one.dataset, one.shots)
        for name, value in paper.settings.items():
            ours = one.config.get(name, value)
            if ours is None and name == "learning_rate":  # the method's default
                ours = one.learning_rate
            if name not in paper.open and ours is not None and ours != value:
                difference = f"{name} {ours} instead of {value}"
                found.setdefault(one.label, {})[difference] = None
    for label, differences in found.items():
        yield f"{label} was not trained with the paper's settings: {', '.join(differences)}."
