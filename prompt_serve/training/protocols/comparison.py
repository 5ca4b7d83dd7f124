"""Our tables beside the papers': every figure, theirs where there is one, and the difference."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prompt_serve.training.protocols.fairness import fairness_notes
from prompt_serve.training.protocols.paper_tables import (
    BACKBONE,
    DATASETS,
    DOMAINS,
    PaperRow,
    paper_row_for,
)
from prompt_serve.training.protocols.results import Result
from prompt_serve.training.protocols.schedules import paper_settings
from prompt_serve.training.protocols.suite import Suite
from prompt_serve.training.protocols.summary import (
    AVERAGE,
    BASE,
    BASE_TO_NEW,
    DOMAIN_GENERALISATION,
    FEW_SHOT,
    HARMONIC,
    NEW,
    SOURCE,
    TEST,
    TRANSFER,
    Figure,
    Summary,
    TableRow,
    comparison_of,
    harmonic_mean,
    latest,
    summarise,
)

PAPERS = "papers"  # the only suite whose figures the papers report
ACCURACY = "accuracy"
OVER = "over"  # how notes on averages begin
_OPENAI = "vit-b-16"  # in the id of the backbone that the papers' figures are of


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure beside the papers'."""

    ours: Figure | None  # shares; None: not measured
    theirs: float | None = None  # percent, as printed; None: there is none

    @property
    def difference(self) -> float | None:
        """Ours less theirs, in percentage points."""
        if self.ours is None or self.theirs is None:
            return None
        return 100 * self.ours.mean - self.theirs

    def to_dict(self) -> dict[str, Any]:
        ours = self.ours
        return {
            "mean": ours.mean if ours else None,
            "spread": ours.spread if ours else None,
            "seeds": ours.seeds if ours else 0,
            "paper_percent": self.theirs,
            "difference_points": self.difference,
        }


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table at one place: a dataset, in transfer a test set, or the average."""

    place: str
    label: str
    shots: int | None  # None: the columns are counts of shots
    cells: Mapping[str, Cell]  # by column
    source: str = ""  # of the papers' figures
    note: str = ""  # what who compares should know, in a few words

    def to_dict(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "label": self.label,
            "shots": self.shots,
            "cells": {name: cell.to_dict() for name, cell in self.cells.items()},
            "source": self.source,
            "note": self.note,
        }


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
    (summary,) = summarise(results, wanted)
    configs = {(one.label, one.shots): one.config for one in results}
    table = _Table(summary, configs, source, len(wanted))
    lines = tuple(table.lines(missing))
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
    if protocol == DOMAIN_GENERALISATION:
        return dict(suite.missing_domains)
    return {name: why for name, why in suite.missing.items() if not datasets or name in datasets}


def _wanted(protocol: str, suite: str, source: str) -> tuple[str, ...]:
    """What an average has to cover to be whole; none: what any row has."""
    if suite != PAPERS:
        return ()
    if protocol == DOMAIN_GENERALISATION:
        return DOMAINS
    return tuple(name for name in DATASETS if name != source)


class _Table:
    """The lines of one comparison."""

    def __init__(
        self,
        summary: Summary,
        configs: Mapping[tuple[str, int], Mapping[str, Any]],
        source: str,
        whole: int,
    ) -> None:
        self._summary, self._configs, self._source = summary, configs, source
        self._whole = whole  # datasets that the papers average over
        self._protocol = summary.protocol

    @property
    def columns(self) -> tuple[str, ...]:
        if self._protocol == FEW_SHOT:
            return tuple(map(_shots_column, self._summary.shots))
        return (BASE, NEW, HARMONIC) if self._protocol == BASE_TO_NEW else (ACCURACY,)

    def lines(self, missing: Mapping[str, str]) -> Iterator[Line]:
        """By place in the order of the suite; rows in the order they were asked for."""
        there = self._places()
        places = [name for name in there if name != AVERAGE]
        places += [name for name in missing if name not in there]
        if self._summary.suite == PAPERS:
            order = (SOURCE, *DATASETS, *DOMAINS)
            places.sort(key=lambda name: order.index(name) if name in order else len(order))
        if sum(name != SOURCE for name in places) > 1:
            places.append(AVERAGE)
        for place in places:
            for label in self._summary.labels:
                lines = [
                    self._line(place, label, shots, absent=place in missing)
                    for shots in self._summary.shots
                    if (label, shots) in self._configs
                ]
                yield from [_beside(lines)] if self._protocol == FEW_SHOT else lines

    def _places(self) -> tuple[str, ...]:
        if self._source:
            return self._summary.test_sets
        return (*self._summary.datasets, AVERAGE)

    def _line(self, place: str, label: str, shots: int, *, absent: bool) -> Line:
        row = self._summary.row(self._source or place, label, shots)
        ours = self._ours(row, place)
        paper = self._theirs(place, label, shots, row)
        figures = paper.figures if paper else {}
        notes = [
            "not on disk" if absent and not ours else "" if ours else "not measured",
            _coverage(row) if place == AVERAGE and row else "",
            "paper: ablation" if paper and paper.ablation else "",
            "paper: from memory" if paper and paper.from_memory else "",
        ]
        return Line(
            place=place,
            label=label,
            shots=shots,
            cells={
                name: Cell(ours=ours.get(name), theirs=figures.get(name))
                for name in ((TEST,) if self._protocol == FEW_SHOT else self.columns)
            },
            source=paper.source if paper else "",
            note=", ".join(filter(None, notes)),
        )

    def _ours(self, row: TableRow | None, place: str) -> Mapping[str, Figure]:
        if row is None:
            return {}
        if not self._source:
            return row.figures
        return {ACCURACY: row.figures[place]} if place in row.figures else {}

    def _theirs(self, place: str, label: str, shots: int, row: TableRow | None) -> PaperRow | None:
        """The papers' figures under our columns."""
        if self._summary.suite != PAPERS:
            return None
        if place == AVERAGE and row is not None and len(row.over) < self._whole:
            return _averaged([self._theirs(name, label, shots, None) for name in row.over])
        found = paper_row_for(
            self._configs[label, shots],
            self._protocol,
            self._source or place,
            shots=shots,
            ablations=True,
        )
        if found is None or not self._source:
            return found
        return _only(found, place)


def _shots_column(shots: int) -> str:
    return f"{shots} shot{'s' if shots != 1 else ''}"


def _beside(lines: Sequence[Line]) -> Line:
    """Lines of one row that differ in shots alone as one, a column for each."""
    return replace(
        lines[0],
        shots=None,
        cells={_shots_column(line.shots or 0): line.cells[TEST] for line in lines},
        source="; ".join(dict.fromkeys(line.source for line in lines if line.source)),
        note=", ".join(dict.fromkeys(line.note for line in lines if line.note)),
    )


def _coverage(row: TableRow) -> str:
    return f"{OVER} {len(row.over)} of {len(row.over) + len(row.missing)}" if row.partial else ""


def _only(row: PaperRow, test_set: str) -> PaperRow | None:
    if test_set not in row.figures:
        return None
    return replace(row, figures={ACCURACY: row.figures[test_set]})


def _averaged(rows: Sequence[PaperRow | None]) -> PaperRow | None:
    """The mean of a paper's panels, where it has all that are asked for."""
    known = [row for row in rows if row is not None]
    if not known or len(known) < len(rows):
        return None
    first = known[0]
    shared = [name for name in first.figures if all(name in row.figures for row in known)]
    means = {name: statistics.fmean(row.figures[name] for row in known) for name in shared}
    if BASE in means and NEW in means:
        means[HARMONIC] = harmonic_mean(means[BASE], means[NEW])
    return replace(
        first,
        figures=means,
        ablation=any(row.ablation for row in known),
        from_memory=any(row.from_memory for row in known),
    )


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
