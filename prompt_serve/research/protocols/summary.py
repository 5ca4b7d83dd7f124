"""Summarize results as table rows: mean and spread over seeds, averages over datasets.

Accuracies are fractions, 0 to 1, with full precision; they are rounded only when printed.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prompt_serve.research.protocols.results import Result

AVERAGE = "average"  # over datasets, or over the targets of one source
HARMONIC = "H"  # harmonic mean of base and new
BASE, NEW, TEST, SOURCE = "base", "new", "test", "source"
BASE_TO_NEW, FEW_SHOT = "base-to-new", "few-shot"
CROSS_DATASET, DOMAIN_GENERALIZATION = "cross-dataset", "domain-generalization"
TRANSFER = (CROSS_DATASET, DOMAIN_GENERALIZATION)  # train on one dataset, test on others


@dataclass(frozen=True, kw_only=True)
class MeanOverSeeds:
    """Mean and standard deviation over seeds."""

    mean: float
    spread: float  # standard deviation (n - 1); 0 for fewer than two seeds
    seeds: int  # number of seeds in the spread

    def percent(self) -> str:
        """Format as in tables: "80.32 ± 0.41", without a spread for a single seed."""
        mean = f"{100 * self.mean:.2f}"
        return f"{mean} ± {100 * self.spread:.2f}" if self.seeds > 1 else mean


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of a table on one dataset, or averaged over datasets."""

    dataset: str  # training dataset, or AVERAGE
    label: str
    method: str
    shots: int
    # By test set, in the protocol's order. Base-to-new adds HARMONIC; cross-dataset and
    # domain-generalization add AVERAGE, over everything but the source.
    figures: Mapping[str, MeanOverSeeds]
    payload_bytes: float  # learned numbers in the prompt file, mean over the runs
    trained_numbers: float  # mean over the runs
    seconds: float  # training time of one prompt, mean over the runs
    over: tuple[str, ...] = ()  # datasets, or test sets, in the average
    missing: tuple[str, ...] = ()  # datasets, or test sets, that this row has no figures for

    @property
    def partial(self) -> bool:
        """Return True if the average lacks datasets that other rows have."""
        return bool(self.missing)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All rows of one protocol over one suite on one backbone."""

    protocol: str
    suite: str
    backbone: str
    datasets: tuple[str, ...]  # training datasets in the order of the suite
    test_sets: tuple[str, ...]  # keys of ``TableRow.figures``, in order
    labels: tuple[str, ...]
    shots: tuple[int, ...]  # ascending
    rows: tuple[TableRow, ...] = field(repr=False)

    def row(self, dataset: str, label: str, shots: int | None = None) -> TableRow | None:
        """Return the row of a dataset or AVERAGE; None if there is none.

        Raises:
            ValueError: ``shots`` is None and there are rows of several shots.
        """
        found = [
            row
            for row in self.rows
            if (row.dataset, row.label) == (dataset, label) and shots in (None, row.shots)
        ]
        if len(found) > 1:
            counts = ", ".join(str(row.shots) for row in found)
            raise ValueError(f"{label!r} has rows of {counts} shots; name one.")
        return found[0] if found else None


@dataclass(frozen=True)
class _SeedAccuracies:
    """Accuracy of each seed, kept apart for further averaging."""

    mean: float
    by_seed: Mapping[int, float]

    def figure(self) -> MeanOverSeeds:
        values = list(self.by_seed.values())
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return MeanOverSeeds(mean=self.mean, spread=spread, seeds=len(values))


def summarize(results: Iterable[Result], expected: Sequence[str] = ()) -> tuple[Summary, ...]:
    """Build one summary per protocol, suite and backbone, in order of first appearance.

    Args:
        results: from one or several runs; the last line of a run id counts.
        expected: datasets (or targets of a transfer) that a complete average covers; empty: all
            that any row has.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in latest(results):
        groups.setdefault(comparison_of(result), []).append(result)
    return tuple(_summary(*key, group, expected) for key, group in groups.items())


def latest(results: Iterable[Result]) -> tuple[Result, ...]:
    """Drop lines that a later line of the same run replaces."""
    return tuple({(comparison_of(one), one.run_id): one for one in results}.values())


def comparison_of(result: Result) -> tuple[str, str, str]:
    """Return protocol, suite and backbone; only results that share them go into one table."""
    return result.protocol, result.suite, str(result.backbone.get("id", ""))


def harmonic_mean(base: float, new: float) -> float:
    """Return the harmonic mean of base and new accuracy, 0 if both are 0 (CoCoOp, section 4.1)."""
    return 2 * base * new / (base + new) if base + new else 0.0


def _summary(
    protocol: str, suite: str, backbone: str, results: Sequence[Result], expected: Sequence[str]
) -> Summary:
    tested = tuple(dict.fromkeys(name for one in results for name in one.accuracy))
    datasets = tuple(dict.fromkeys(one.dataset for one in results))
    labels = tuple(dict.fromkeys(one.label for one in results))
    shots = tuple(sorted({one.shots for one in results}))
    transfer = protocol in TRANSFER
    covered = tuple(expected) or (tuple(t for t in tested if t != SOURCE) if transfer else datasets)
    rows: list[TableRow] = []
    averages: list[TableRow] = []
    for count in shots:
        for label in labels:
            runs = [one for one in results if (one.shots, one.label) == (count, label)]
            cells = {d: _cells([one for one in runs if one.dataset == d]) for d in datasets}
            cells = {dataset: found for dataset, found in cells.items() if found}
            for dataset, found in cells.items():
                of_dataset = [one for one in runs if one.dataset == dataset]
                rows.append(_row(dataset, of_dataset, found, covered if transfer else None))
            if cells and not transfer:
                averages.append(_average_row(runs, cells, covered, tested))
    rows.sort(key=lambda row: datasets.index(row.dataset))  # stable: keeps shots and labels
    extra = {BASE_TO_NEW: (HARMONIC,), **dict.fromkeys(TRANSFER, (AVERAGE,))}.get(protocol, ())
    return Summary(
        protocol=protocol,
        suite=suite,
        backbone=backbone,
        datasets=datasets,
        test_sets=(*tested, *extra),
        labels=labels,
        shots=shots,
        rows=(*rows, *averages),
    )


def _row(
    dataset: str,
    results: Sequence[Result],
    cells: Mapping[str, _SeedAccuracies],
    targets: Sequence[str] | None,
    over: tuple[str, ...] = (),
    missing: tuple[str, ...] = (),
) -> TableRow:
    """Build a row from runs of one label; with ``targets``, add their average as a figure."""
    if targets is not None:
        over = tuple(name for name in targets if name in cells)
        missing = tuple(name for name in targets if name not in cells)
        if over:
            cells = {**cells, AVERAGE: _average([cells[name] for name in over])}
    if BASE in cells and NEW in cells:
        cells = {**cells, HARMONIC: _harmonic(cells[BASE], cells[NEW])}
    return TableRow(
        dataset=dataset,
        label=results[0].label,
        method=results[0].method,
        shots=results[0].shots,
        figures={name: cell.figure() for name, cell in cells.items()},
        payload_bytes=statistics.fmean(one.payload_bytes for one in results),
        trained_numbers=statistics.fmean(one.trained_numbers for one in results),
        seconds=statistics.fmean(one.seconds for one in results),
        over=over,
        missing=missing,
    )


def _average_row(
    results: Sequence[Result],
    cells: Mapping[str, Mapping[str, _SeedAccuracies]],
    covered: Sequence[str],
    tested: Sequence[str],
) -> TableRow:
    whole = {d: found for d, found in cells.items() if all(name in found for name in tested)}
    over = tuple(name for name in covered if name in whole)
    missing = tuple(name for name in covered if name not in whole)
    averaged = {t: _average([whole[name][t] for name in over]) for t in tested} if over else {}
    return _row(AVERAGE, results, averaged, None, over, missing)


def _cells(results: Sequence[Result]) -> dict[str, _SeedAccuracies]:
    """Return accuracies by test set, for runs that differ only in their seeds."""
    by_seed: dict[str, dict[int, float]] = {}
    for result in results:
        for name, accuracy in result.accuracy.items():
            by_seed.setdefault(name, {})[result.seed] = accuracy
    return {
        name: _SeedAccuracies(statistics.fmean(values.values()), values)
        for name, values in by_seed.items()
    }


def _average(cells: Sequence[_SeedAccuracies]) -> _SeedAccuracies:
    """Average the means; the spread is that of the averages of each shared seed."""
    shared = [seed for seed in cells[0].by_seed if all(seed in one.by_seed for one in cells)]
    return _SeedAccuracies(
        statistics.fmean(one.mean for one in cells),
        {seed: statistics.fmean(one.by_seed[seed] for one in cells) for seed in shared},
    )


def _harmonic(base: _SeedAccuracies, new: _SeedAccuracies) -> _SeedAccuracies:
    """Return H of the means, as in the papers' tables, not the mean of the seeds' H."""
    shared = [seed for seed in base.by_seed if seed in new.by_seed]
    return _SeedAccuracies(
        harmonic_mean(base.mean, new.mean),
        {seed: harmonic_mean(base.by_seed[seed], new.by_seed[seed]) for seed in shared},
    )
