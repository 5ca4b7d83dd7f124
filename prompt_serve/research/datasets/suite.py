"""Datasets that protocols run over: what each is called, where it is, and what is missing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prompt_serve.errors import ConfigInvalid, DatasetMissing
from prompt_serve.training.data.dataset import ImageSet, Split


@dataclass(frozen=True, kw_only=True)
class BenchDataset:
    """A dataset as a protocol takes it."""

    name: str  # as on the command line and in results: "oxford_pets"
    title: str  # as in tables: "OxfordPets"
    split: Split
    template: str  # hand-written sentence with {}, of the zero-shot row
    # Test sets of other looks: by name, each over its own classes, which may be some of the
    # dataset's (ImageNet-A and -R know 200 of 1,000).
    domains: Mapping[str, ImageSet] = field(default_factory=dict)
    note: str = ""  # what who reads its numbers should know


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Datasets that are averaged over, each read when it is asked for."""

    name: str  # "papers", "icon", "own"
    datasets: Mapping[str, Callable[[], BenchDataset]]  # in the order of the tables
    source: str  # the dataset that transfer and domain generalization learn on
    # What is not there: name -> what to fetch and where to put it. Never silently left out.
    missing: Mapping[str, str] = field(default_factory=dict)
    # Domains of the source that are not there, in the same way.
    missing_domains: Mapping[str, str] = field(default_factory=dict)

    def load(self, name: str) -> BenchDataset:
        """Read one dataset.

        Raises:
            DatasetMissing: it is not on disk; the error says what to fetch.
            ConfigInvalid: there is none of this name.
            DatasetInvalid: it is there and faulty.
        """
        if name in self.datasets:
            return self.datasets[name]()
        if name in self.missing:
            raise DatasetMissing(f"Dataset {name!r} is not there: {self.missing[name]}", name=name)
        known = ", ".join([*self.datasets, *self.missing]) or "none"
        raise ConfigInvalid(f"{self.name!r} has no dataset {name!r}; there are {known}.")

    def chosen(self, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Those of ``names`` that are there, all that are where empty, in the suite's order.

        Raises:
            ConfigInvalid: some are not datasets of this suite.
        """
        known = [*self.datasets, *self.missing]
        if strangers := [name for name in names if name not in known]:
            raise ConfigInvalid(
                f"{self.name!r} has no dataset {', '.join(map(repr, strangers))}; "
                f"there are {', '.join(known)}."
            )
        return tuple(name for name in self.datasets if not names or name in names)
