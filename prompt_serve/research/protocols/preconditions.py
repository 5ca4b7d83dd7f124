"""Checks of a protocol run before it trains anything: a run takes hours, and all faults show first.

Datasets are listed, not decoded. They are read again when they are used, so that they are not all
in memory at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prompt_serve.errors import ConfigInvalid, DatasetInvalid, DatasetMissing, PromptServeError
from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.research.protocols.experiment import Experiment, check_stored
from prompt_serve.research.protocols.protocols import test_part
from prompt_serve.research.protocols.summary import (
    BASE_TO_NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
)

_TRANSFER = (CROSS_DATASET, DOMAIN_GENERALIZATION)


def check_on_disk(
    suite: Suite,
    protocol: str,
    *,
    source: str | None = None,
    datasets: Sequence[str] = (),
    all_required: bool = False,
) -> None:
    """Check that the datasets of a run are on disk; only folders are looked at.

    Args:
        suite: datasets to run on.
        protocol: name of the protocol.
        source: training dataset of a transfer; None: the suite's source.
        datasets: requested datasets; empty: all available ones.
        all_required: no dataset or domain of the suite may be missing.

    Raises:
        ConfigInvalid: ``source`` or ``datasets`` has names that the suite does not know.
        DatasetMissing: lists everything that is missing, and what to download.
    """
    suite.chosen([*datasets, *([source] if source else [])])
    required = set(datasets)
    if not required and (all_required or not suite.datasets):
        required = set(suite.missing)
    if protocol == DOMAIN_GENERALIZATION:
        required = set()
    if protocol in _TRANSFER:
        required.add(source or suite.source)
    missing = {name: text for name, text in suite.missing.items() if name in required}
    if protocol == DOMAIN_GENERALIZATION and all_required:
        missing |= suite.missing_domains
    if missing:
        lines = "".join(f"\n  - {name}: {text}" for name, text in missing.items())
        raise DatasetMissing(f"Datasets are missing:{lines}", names=tuple(missing))


def check_run(
    suite: Suite,
    experiment: Experiment,
    protocol: str,
    *,
    source: str | None = None,
    datasets: Sequence[str] = (),
    shots: Sequence[int] = (),
) -> None:
    """List all datasets of a run, and compare the run folder with what is to be trained.

    Args:
        suite: datasets to run on.
        experiment: rows, seeds, settings and run folder.
        protocol: name of the protocol.
        source: training dataset of a transfer; None: the suite's source.
        datasets: names of some datasets; empty: all available ones.
        shots: training images per class.

    Raises:
        PromptServeError: the only fault.
        ConfigInvalid: several faults, each with a line of its own.
    """
    faults: list[PromptServeError] = []
    chosen = suite.chosen(datasets)
    learned = [source or suite.source] if protocol in _TRANSFER else list(chosen)
    tested = chosen if protocol == CROSS_DATASET else ()
    for name in dict.fromkeys([*learned, *tested]):
        with _collected(faults):
            dataset = suite.load(name)
            with _collected(faults):
                _check_tests(dataset, protocol)
            for k in shots if name in learned else ():
                with _collected(faults):
                    check_stored(experiment, suite.name, dataset, protocol, shots=k)
            if protocol == DOMAIN_GENERALIZATION:
                for domain in dataset.domains:
                    with _collected(faults):
                        _ = dataset.domains[domain]
    lines = list(dict.fromkeys(" ".join(fault.message.split()) for fault in faults))
    if len(lines) == 1:
        raise faults[0]
    if lines:
        raise ConfigInvalid("The run cannot start:", lines)


def _check_tests(dataset: BenchDataset, protocol: str) -> None:
    test_part(dataset)
    if protocol == BASE_TO_NEW and len(dataset.split.class_names) < 2:
        raise DatasetInvalid(
            f"Dataset {dataset.name!r} has one class; {BASE_TO_NEW} needs at least two."
        )


@contextmanager
def _collected(faults: list[PromptServeError]) -> Iterator[None]:
    try:
        yield
    except PromptServeError as error:
        faults.append(error)
