"""Our tables beside the papers': every figure, theirs where there is one, and the difference."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prompt_serve.research.datasets.suite import Suite
from prompt_serve.research.protocols.comparison_lines import OVER, PAPERS, Line, Lines
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

_OPENAI = "vit-b-16"  # in the id of the backbone that the papers' figures are of


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table of one protocol, suite and backbone."""

    protocol: str
    suite: str
    backbone: str
    learned_on: str  # in transfer the source; otherwise ""
    columns: tuple[str, ...]
    lines: tuple[Line, ...] = field(repr=False)  # by place, the average last
    missing: Mapping[str, str]  # place that is not on disk -> what to fetch
    notes: tuple[str, ...]  # sentences

    @property
    def with_papers(self) -> frozenset[str]:
        """Columns in which there is a figure of a paper."""
        return frozenset(
            name
            for line in self.lines
            for name, cell in line.cells.items()
            if cell.theirs is not None
        )

    @property
    def several_shots(self) -> bool:
        """Whether the lines have to say of how many shots they are."""
        return len({line.shots for line in self.lines}) > 1

    def only(self, *places: str) -> "Comparison":
        """The table at some places alone, such as AVERAGE."""
        return replace(self, lines=tuple(line for line in self.lines if line.place in places))

    def to_dict(self) -> dict[str, Any]:
        """In types of JSON."""
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
    """A table for each protocol, suite, backbone and, in transfer, source.

    The papers' figures stand only beside results of the suite "papers". An average over some of the
    datasets stands beside the mean of the papers' figures for the same ones, never beside their
    average over all.

    Args:
        results: of one run or several.
        suite: that was run; what it misses is listed.
        datasets: that were asked for; of the others nothing is said to be missing.
    """
    groups: dict[tuple[tuple[str, str, str], str], list[Result]] = {}
    for one in latest(results):
        source = one.dataset if one.protocol in TRANSFER else ""
        groups.setdefault((comparison_of(one), source), []).append(one)
    return tuple(_comparison(own, source, suite, datasets) for (_, source), own in groups.items())


def _comparison(
    results: Sequence[Result], source: str, suite: Suite | None, datasets: Sequence[str]
) -> Comparison:
    protocol, suite_name, backbone = comparison_of(results[0])
    missing = _missing(protocol, suite, datasets) if suite and suite.name == suite_name else {}
    missing.pop(source, None)
    wanted = _wanted(protocol, suite_name, source)
    (summary,) = summarize(results, wanted)
    configs = {(one.label, one.shots): one.config for one in results}
    table = Lines(summary, configs, source, len(wanted))
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


def _wanted(protocol: str, suite: str, source: str) -> tuple[str, ...]:
    """What an average has to cover to be whole; none: what any row has."""
    if suite != PAPERS:
        return ()
    if protocol == DOMAIN_GENERALIZATION:
        return DOMAINS
    return tuple(name for name in DATASETS if name != source)


def _notes(results: Sequence[Result], summary: Summary, lines: Sequence[Line]) -> Iterator[str]:
    if any(line.place == AVERAGE and line.note.startswith(OVER) and line.source for line in lines):
        yield (
            "Beside an average over some of the datasets stands the mean of the paper's figures "
            "for the same ones, not the average that it prints."
        )
    if summary.suite == PAPERS:
        if _OPENAI not in summary.backbone.lower():
            yield (
                f"The papers' figures are of OpenAI's {BACKBONE}; these are of "
                f"{summary.backbone or 'another backbone'}."
            )
        yield from _departures(results)
    yield from fairness_notes(results)


def _departures(results: Sequence[Result]) -> Iterator[str]:
    """Where a row was not learned as its paper says, as far as it does say."""
    found: dict[str, dict[str, None]] = {}
    for one in results:
        paper = paper_settings(one.protocol, one.method, one.dataset, one.shots)
        for name, value in paper.settings.items():
            ours = one.config.get(name, value)
            if ours is None and name == "learning_rate":  # the method's own
                ours = one.learning_rate
            if name not in paper.open and ours is not None and ours != value:
                difference = f"{name} {ours} instead of {value}"
                found.setdefault(one.label, {})[difference] = None
    for label, differences in found.items():
        yield f"{label} was not learned with the paper's settings: {', '.join(differences)}."
