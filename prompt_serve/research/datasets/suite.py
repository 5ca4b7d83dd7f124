"""Suite: the datasets that a protocol runs on, and those that are missing on disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prompt_serve.errors import ConfigInvalid, DatasetMissing, did_you_mean
from prompt_serve.training.data.dataset import ImageSet, Split


@dataclass(frozen=True, kw_only=True)
class BenchDataset:
    """Input dataset of a protocol."""

    name: str  # as on the command line and in results: "oxford_pets"
    split: Split
    template: str  # hand-written sentence with {}, for the zero-shot row
    # Domains by name, each over its own classes, which may be a subset of the dataset's
    # (ImageNet-A and -R have 200 of 1,000).
    domains: Mapping[str, ImageSet] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Datasets that are averaged over, each read on demand."""

    name: str  # "papers", "icon", "user"
    datasets: Mapping[str, Callable[[], BenchDataset]]  # in the order of the tables
    source: str  # training dataset of cross-dataset transfer and domain generalization
    # Missing datasets: name -> what to download and where to put it. Always reported.
    missing: Mapping[str, str] = field(default_factory=dict)
    # Missing domains of the source, in the same format.
    missing_domains: Mapping[str, str] = field(default_factory=dict)

    def load(self, name: str) -> BenchDataset:
        """Read one dataset.

        Raises:
            DatasetMissing: it is not on disk; the error says what to download.
            ConfigInvalid: the name is unknown.
            DatasetInvalid: the dataset on disk is invalid.
        """
        if name in self.datasets:
            return self.datasets[name]()
        if name in self.missing:
            raise DatasetMissing(f"Dataset {name!r} is missing: {self.missing[name]}", name=name)
        known = ", ".join([*self.datasets, *self.missing]) or "none"
        raise ConfigInvalid(
            f"Suite {self.name!r} has no dataset {name!r}; it has {known}."
            f"{did_you_mean(name, [*self.datasets, *self.missing])}"
        )

    def chosen(self, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the available datasets among ``names`` (empty: all), in the suite's order.

        Raises:
            ConfigInvalid: some names are not datasets of this suite.
        """
        known = [*self.datasets, *self.missing]
        if unknown := [name for name in names if name not in known]:
            raise ConfigInvalid(
                f"Suite {self.name!r} has no dataset {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(known)}.{did_you_mean(unknown[0], known)}"
            )
        return tuple(name for name in self.datasets if not names or name in names)
