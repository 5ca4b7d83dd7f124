"""Paired comparison of two methods across datasets and seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from prompt_serve.errors import ConfigInvalid
from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import (
    AVERAGE,
    BASE,
    HARMONIC,
    NEW,
    SOURCE,
    comparison_of,
    harmonic_mean,
    latest,
)

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Accuracies are fractions of whole images; smaller differences are rounding errors.
SAME = 1e-9


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Difference in accuracy between ``label`` and ``other``, with its uncertainty."""

    label: str
    other: str
    test_set: str
    difference: float  # of accuracies (fractions), mean over datasets of the mean over seeds
    low: float  # 95 % interval, bootstrap over datasets and, within them, seeds
    high: float
    pairs: int  # (dataset, seed) pairs
    wins: int
    ties: int
    losses: int
    datasets: Mapping[str, float]  # dataset -> mean difference
    dataset_p: float  # two-sided Wilcoxon over the datasets' mean differences
    # The same over all pairs; too small, because the seeds of one dataset share its test images.
    pair_p: float

    @property
    def excludes_zero(self) -> bool:
        """Return True if the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def text(self) -> str:
        """Return a one-line summary in percentage points."""
        return (
            f"{self.label} - {self.other}, {self.test_set}: {100 * self.difference:+.2f} points "
            f"[{100 * self.low:+.2f}, {100 * self.high:+.2f}], {self.wins} wins, {self.ties} ties, "
            f"{self.losses} losses of {self.pairs} pairs, p = {self.dataset_p:.3g} over "
            f"{len(self.datasets)} datasets"
        )


def compare_rows(
    results: Iterable[Result],
    label: str,
    other: str,
    *,
    test_set: str,
    shots: int | None = None,
) -> PairedComparison:
    """Compare two rows on every dataset and seed that both have.

    Args:
        results: of one protocol, suite and backbone.
        label: row to evaluate.
        other: row to compare it with.
        test_set: a key of the accuracies; HARMONIC for H; AVERAGE for all targets of a transfer,
            each of which then counts as a dataset.
        shots: training images per class; None takes all counts, as separate pairs.

    Raises:
        ConfigInvalid: the results mix comparisons, or no dataset and seed has both rows.
    """
    selected = [one for one in latest(results) if shots in (None, one.shots)]
    kinds = sorted({comparison_of(one) for one in selected if one.label in (label, other)})
    if len(kinds) > 1:
        raise ConfigInvalid(
            f"Rows can only be compared within one protocol, suite and backbone; these results "
            f"have {', '.join(' / '.join(kind) for kind in kinds)}. Give the results of one."
        )
    ours, theirs = (_values(selected, name, test_set) for name in (label, other))
    differences = _differences(ours, theirs)
    if not differences:
        labels = ", ".join(map(repr, dict.fromkeys(one.label for one in selected))) or "none"
        raise ConfigInvalid(
            f"No dataset and seed has {test_set!r} for both {label!r} and {other!r}; "
            f"the results have the rows {labels}."
        )
    return _paired(label, other, test_set, differences)


_Key = tuple[str, int, int]  # dataset or target, seed, shots


def _values(results: Sequence[Result], label: str, test_set: str) -> dict[_Key, float]:
    found: dict[_Key, float] = {}
    for one in results:
        if one.label == label:
            for name, value in _of_test_set(one, test_set).items():
                found[name, one.seed, one.shots] = value
    return found


def _of_test_set(result: Result, test_set: str) -> dict[str, float]:
    accuracy = result.accuracy
    if test_set == AVERAGE:
        targets = {name: value for name, value in accuracy.items() if name != SOURCE}
        return {f"{result.dataset} to {name}": value for name, value in targets.items()}
    if test_set == HARMONIC and BASE in accuracy and NEW in accuracy:
        return {result.dataset: harmonic_mean(accuracy[BASE], accuracy[NEW])}
    return {result.dataset: accuracy[test_set]} if test_set in accuracy else {}


def _differences(
    ours: Mapping[_Key, float], theirs: Mapping[_Key, float]
) -> dict[str, list[float]]:
    """Return the differences by dataset, one per seed and number of shots."""
    found: dict[str, list[float]] = {}
    for key, value in ours.items():
        if key in theirs:
            difference = value - theirs[key]
            same = abs(difference) < SAME
            found.setdefault(key[0], []).append(0.0 if same else difference)
    return found


def _paired(
    label: str, other: str, test_set: str, differences: Mapping[str, Sequence[float]]
) -> PairedComparison:
    pairs = [value for values in differences.values() for value in values]
    means = {name: statistics.fmean(values) for name, values in differences.items()}
    low, high = _interval(list(differences.values()))
    return PairedComparison(
        label=label,
        other=other,
        test_set=test_set,
        difference=statistics.fmean(means.values()),
        low=low,
        high=high,
        pairs=len(pairs),
        wins=sum(value > 0 for value in pairs),
        ties=sum(value == 0 for value in pairs),
        losses=sum(value < 0 for value in pairs),
        datasets=means,
        dataset_p=_p_value(list(means.values())),
        pair_p=_p_value(pairs),
    )


def _interval(differences: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return a two-stage percentile bootstrap interval: datasets, then seeds within each."""
    rng = np.random.default_rng(0)
    count = len(differences)
    drawn = rng.integers(count, size=(RESAMPLES, count))  # (RESAMPLES, count) dataset indexes
    means = np.empty((RESAMPLES, count))  # mean over resampled seeds of each drawn dataset
    for index, values in enumerate(differences):
        chosen = drawn == index
        seeds = rng.integers(len(values), size=(int(chosen.sum()), len(values)))
        means[chosen] = np.asarray(values)[seeds].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means.mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


def _p_value(differences: Sequence[float]) -> float:
    """Return the p-value of a two-sided Wilcoxon signed-rank test, ties with zero left out.

    1 if nothing differs. It cannot be small for few pairs: three give 0.25 at best.
    """
    # Rounded so that equal differences get equal ranks.
    nonzero = [round(value, 9) for value in differences if abs(value) >= SAME]
    return float(wilcoxon(nonzero).pvalue) if nonzero else 1.0
