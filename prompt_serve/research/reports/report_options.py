"""Which row, datasets and runs the figures show that cannot show all."""

from collections.abc import Sequence
from dataclasses import dataclass

from prompt_serve.errors import ConfigInvalid
from prompt_serve.research.reports.stored_runs import StoredRun, best_row


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the user asked for."""

    row: str | None = None  # None: the best by validation accuracy
    datasets: tuple[str, ...] = ()  # none: the first that has what a figure wants

    def check(self, runs: Sequence[StoredRun]) -> None:
        """Raise ConfigInvalid unless there are such rows and datasets."""
        labels = dict.fromkeys(run.result.label for run in runs)
        known = dict.fromkeys(run.result.dataset for run in runs)
        if self.row is not None and self.row not in labels:
            raise ConfigInvalid(f"There is no row {self.row!r}; there are {_named(labels)}.")
        if strangers := [name for name in self.datasets if name not in known]:
            raise ConfigInvalid(
                f"There is no dataset {_named(strangers)}; there are {_named(known)}."
            )

    def rows(self, runs: Sequence[StoredRun]) -> tuple[str, ...]:
        """The label to show of a table's runs; none where it has not the one that was asked for."""
        labels = list(dict.fromkeys(run.result.label for run in runs))
        if self.row is not None:
            return (self.row,) if self.row in labels else ()
        return tuple(labels[:1]) if (best := best_row(runs)) is None else (best,)

    def chosen_datasets(self, runs: Sequence[StoredRun]) -> tuple[str, ...]:
        """Those asked for that some of ``runs`` are of; or the first."""
        there = list(dict.fromkeys(run.result.dataset for run in runs))
        if self.datasets:
            return tuple(name for name in self.datasets if name in there)
        return tuple(there[:1])


def most_shots(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """The runs with the most shots."""
    most = max((run.result.shots for run in runs), default=0)
    return [run for run in runs if run.result.shots == most]


def _named(names: Sequence[str] | dict[str, None]) -> str:
    return ", ".join(map(repr, names))
