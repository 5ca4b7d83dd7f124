"""Rows of a comparison table: our figure at each place, and the papers' for the same method."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prompt_serve.research.protocols.paper_tables import (
    DATASETS,
    DOMAINS,
    PaperRow,
    mean_of,
    paper_row_for,
)
from prompt_serve.research.protocols.summary import (
    AVERAGE,
    BASE,
    BASE_TO_NEW,
    FEW_SHOT,
    HARMONIC,
    NEW,
    SOURCE,
    TEST,
    MeanOverSeeds,
    Summary,
    TableRow,
)

PAPERS = "papers"  # the only suite that the papers report figures for
ACCURACY = "accuracy"
OVER = "over"  # first word of notes on averages


@dataclass(frozen=True, kw_only=True)
class ComparedFigure:
    """One figure of ours beside the papers'."""

    ours: MeanOverSeeds | None  # fractions; None: not measured
    theirs: float | None = None  # percent, as printed; None: not reported

    @property
    def difference(self) -> float | None:
        """Ours minus theirs, in percentage points."""
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
class ComparisonLine:
    """One row of a table at one place: a dataset, a test set of a transfer, or the average."""

    place: str
    label: str
    shots: int | None  # None: the columns are numbers of shots
    cells: Mapping[str, ComparedFigure]  # by column
    source: str = ""  # paper and table of the papers' figures
    note: str = ""  # short caveat for the comparison

    def to_dict(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "label": self.label,
            "shots": self.shots,
            "cells": {name: cell.to_dict() for name, cell in self.cells.items()},
            "source": self.source,
            "note": self.note,
        }


class LineBuilder:
    """Builds the lines of one table."""

    def __init__(
        self,
        summary: Summary,
        configs: Mapping[tuple[str, int], Mapping[str, Any]],
        source: str,
        whole: int,
    ) -> None:
        self._summary, self._configs, self._source = summary, configs, source
        self._whole = whole  # number of datasets that the papers average over
        self._protocol = summary.protocol

    @property
    def columns(self) -> tuple[str, ...]:
        if self._protocol == FEW_SHOT:
            return tuple(map(_shots_column, self._summary.shots))
        return (BASE, NEW, HARMONIC) if self._protocol == BASE_TO_NEW else (ACCURACY,)

    def __call__(self, missing: Mapping[str, str]) -> Iterator[ComparisonLine]:
        """Yield lines by place in the order of the suite, rows in the order they were requested.

        A place that is missing on disk has only the rows for which the papers report a figure.
        """
        measured = self._places()
        places = [name for name in measured if name != AVERAGE]
        places += [name for name in missing if name not in measured]
        if self._summary.suite == PAPERS:
            order = (SOURCE, *DATASETS, *DOMAINS)
            places.sort(key=lambda name: order.index(name) if name in order else len(order))
        if sum(name not in (SOURCE, AVERAGE) for name in measured) > 1:
            places.append(AVERAGE)
        for place in places:
            yield from self._absent(place) if place in missing else self._at(place)

    def _absent(self, place: str) -> Iterator[ComparisonLine]:
        known = [
            line
            for line in self._at(place, "not on disk")
            if any(cell.theirs is not None for cell in line.cells.values())
        ]
        yield from known or [
            ComparisonLine(place=place, label="", shots=None, cells={}, note="not on disk")
        ]

    def _at(self, place: str, why: str = "not measured") -> Iterator[ComparisonLine]:
        for label in self._summary.labels:
            lines = [
                self._line(place, label, shots, why)
                for shots in self._summary.shots
                if (label, shots) in self._configs
            ]
            yield from [_merged(lines)] if self._protocol == FEW_SHOT else lines

    def _places(self) -> tuple[str, ...]:
        if self._source:
            return self._summary.test_sets
        return (*self._summary.datasets, AVERAGE)

    def _line(self, place: str, label: str, shots: int, why: str) -> ComparisonLine:
        row = self._summary.row(self._source or place, label, shots)
        ours = self._ours(row, place)
        paper = self._theirs(place, label, shots, row)
        figures = paper.figures if paper else {}
        notes = [
            "" if ours else why,
            _coverage(row) if place == AVERAGE and row else "",
            "paper: ablation" if paper and paper.ablation else "",
            "paper: from memory" if paper and paper.from_memory else "",
        ]
        return ComparisonLine(
            place=place,
            label=label,
            shots=shots,
            cells={
                name: ComparedFigure(ours=ours.get(name), theirs=figures.get(name))
                for name in ((TEST,) if self._protocol == FEW_SHOT else self.columns)
            },
            source=paper.source if paper else "",
            note=", ".join(filter(None, notes)),
        )

    def _ours(self, row: TableRow | None, place: str) -> Mapping[str, MeanOverSeeds]:
        if row is None:
            return {}
        if not self._source:
            return row.figures
        return {ACCURACY: row.figures[place]} if place in row.figures else {}

    def _theirs(self, place: str, label: str, shots: int, row: TableRow | None) -> PaperRow | None:
        """Return the papers' figures under our column names."""
        if self._summary.suite != PAPERS:
            return None
        if place == AVERAGE and row is not None and len(row.over) < self._whole:
            return mean_of([self._theirs(name, label, shots, None) for name in row.over])
        found = paper_row_for(
            self._configs[label, shots],
            self._protocol,
            self._source or place,
            shots=shots,
            ablations=True,
        )
        if found is None or not self._source:
            return found
        return found.at(place, ACCURACY)


def _shots_column(shots: int) -> str:
    return f"{shots} shot{'s' if shots != 1 else ''}"


def _merged(lines: Sequence[ComparisonLine]) -> ComparisonLine:
    """Merge lines of one row that differ only in shots into one, with a column per count."""
    return replace(
        lines[0],
        shots=None,
        cells={_shots_column(line.shots or 0): line.cells[TEST] for line in lines},
        source="; ".join(dict.fromkeys(line.source for line in lines if line.source)),
        note=", ".join(dict.fromkeys(line.note for line in lines if line.note)),
    )


def _coverage(row: TableRow) -> str:
    return f"{OVER} {len(row.over)} of {len(row.over) + len(row.missing)}" if row.partial else ""
