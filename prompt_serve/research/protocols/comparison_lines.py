"""The rows of a table: our figure at each place, and the papers' where they learned the same."""

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
    Figure,
    Summary,
    TableRow,
)

PAPERS = "papers"  # the only suite whose figures the papers report
ACCURACY = "accuracy"
OVER = "over"  # how notes on averages begin


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


class Lines:
    """What one table says, row by row."""

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

    def __call__(self, missing: Mapping[str, str]) -> Iterator[Line]:
        """By place in the order of the suite; rows in the order they were asked for.

        Of a place that is missing, only rows for which the papers have a figure.
        """
        there = self._places()
        places = [name for name in there if name != AVERAGE]
        places += [name for name in missing if name not in there]
        if self._summary.suite == PAPERS:
            order = (SOURCE, *DATASETS, *DOMAINS)
            places.sort(key=lambda name: order.index(name) if name in order else len(order))
        if sum(name not in (SOURCE, AVERAGE) for name in there) > 1:
            places.append(AVERAGE)
        for place in places:
            yield from self._absent(place) if place in missing else self._at(place)

    def _absent(self, place: str) -> Iterator[Line]:
        known = [
            line
            for line in self._at(place, "not on disk")
            if any(cell.theirs is not None for cell in line.cells.values())
        ]
        yield from known or [Line(place=place, label="", shots=None, cells={}, note="not on disk")]

    def _at(self, place: str, why: str = "not measured") -> Iterator[Line]:
        for label in self._summary.labels:
            lines = [
                self._line(place, label, shots, why)
                for shots in self._summary.shots
                if (label, shots) in self._configs
            ]
            yield from [_beside(lines)] if self._protocol == FEW_SHOT else lines

    def _places(self) -> tuple[str, ...]:
        if self._source:
            return self._summary.test_sets
        return (*self._summary.datasets, AVERAGE)

    def _line(self, place: str, label: str, shots: int, why: str) -> Line:
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
