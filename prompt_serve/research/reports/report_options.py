"""Selection of the row, datasets and runs for figures that cannot show all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from prompt_serve.errors import ConfigInvalid, did_you_mean
from prompt_serve.research.reports.stored_runs import StoredRun, best_row


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Row and datasets requested by the user."""

    row: str | None = None  # None: the best by validation accuracy
    datasets: tuple[str, ...] = ()  # empty: the first with the files a figure needs

    def check(self, runs: Sequence[StoredRun]) -> None:
        """Raise ConfigInvalid if the row or a dataset is unknown."""
        labels = dict.fromkeys(run.result.label for run in runs)
        known = dict.fromkeys(run.result.dataset for run in runs)
        if self.row is not None and self.row not in labels:
            raise ConfigInvalid(
                f"Unknown row {self.row!r}; expected one of {_named(labels)}."
                f"{did_you_mean(self.row, labels)}"
            )
        if unknown := [name for name in self.datasets if name not in known]:
            raise ConfigInvalid(
                f"Unknown dataset {_named(unknown)}; expected some of {_named(known)}."
                f"{did_you_mean(unknown[0], known)}"
            )

    def rows(self, runs: Sequence[StoredRun]) -> tuple[str, ...]:
        """Return the label to show; empty if these runs lack the requested one."""
        labels = list(dict.fromkeys(run.result.label for run in runs))
        if self.row is not None:
            return (self.row,) if self.row in labels else ()
        return tuple(labels[:1]) if (best := best_row(runs)) is None else (best,)

    def chosen_datasets(self, runs: Sequence[StoredRun]) -> tuple[str, ...]:
        """Return the requested datasets that ``runs`` cover; by default the first dataset."""
        available = list(dict.fromkeys(run.result.dataset for run in runs))
        if self.datasets:
            return tuple(name for name in self.datasets if name in available)
        return tuple(available[:1])


def most_shots(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Return the runs with the most shots."""
    most = max((run.result.shots for run in runs), default=0)
    return [run for run in runs if run.result.shots == most]


def _named(names: Sequence[str] | dict[str, None]) -> str:
    return ", ".join(map(repr, names))
