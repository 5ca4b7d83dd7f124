"""The four protocols of the papers. Each trains every row of an experiment with every seed and
returns one ``Result`` per run; no argument allows selection on test images.

CoOp (arXiv 2109.01134), section 4; CoCoOp (arXiv 2203.05557), sections 4.1 to 4.3.
"""

from collections.abc import Sequence

from prompt_serve.errors import ConfigInvalid, DatasetInvalid
from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.research.protocols.experiment import (
    Experiment,
    ProtocolTests,
    TestSet,
    learn_and_test,
)
from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import (
    BASE,
    BASE_TO_NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
    NEW,
    SOURCE,
    TEST,
)
from prompt_serve.training.class_sets import half_labels, of_labels
from prompt_serve.training.data.dataset import ImageSet

PROTOCOLS = (BASE_TO_NEW, FEW_SHOT, CROSS_DATASET, DOMAIN_GENERALIZATION)
SHOTS = 16
FEW_SHOTS = (1, 2, 4, 8, 16)


def base_to_new(
    suite: Suite, experiment: Experiment, *, datasets: Sequence[str] = (), shots: int = SHOTS
) -> list[Result]:
    """Learn the first half of the classes; test on them ("base") and, with the same context and
    the other class names, on the rest ("new"), each over its own classes (CoCoOp, section 4.1).

    Shots are drawn over all classes and then restricted to the base classes, as CoOp's code does.

    Args:
        suite: datasets to run on.
        experiment: rows, seeds and settings.
        datasets: names of some of the suite's datasets; empty: all available ones.
        shots: training images per class.
    """
    results = []
    for name in suite.chosen(datasets):
        dataset = suite.load(name)
        test = test_part(dataset)
        base, new = half_labels(len(dataset.split.class_names))
        tests = (
            TestSet(name=BASE, images=of_labels(test, base), template=dataset.template),
            TestSet(name=NEW, images=of_labels(test, new), template=dataset.template),
        )
        results += learn_and_test(
            experiment,
            suite.name,
            dataset,
            [ProtocolTests(protocol=BASE_TO_NEW, test_sets=tests)],
            shots=shots,
            labels=base,
        )
    return results


def few_shot_learning(
    suite: Suite,
    experiment: Experiment,
    *,
    datasets: Sequence[str] = (),
    shots: Sequence[int] = FEW_SHOTS,
) -> list[Result]:
    """Learn all classes from k images each, for each k; test on all ("test") (CoOp, section 4.1).

    Args:
        suite: datasets to run on.
        experiment: rows, seeds and settings.
        datasets: names of some of the suite's datasets; empty: all available ones.
        shots: values of k.
    """
    results = []
    for name in suite.chosen(datasets):
        dataset = suite.load(name)
        test = TestSet(name=TEST, images=test_part(dataset), template=dataset.template)
        for k in shots:
            results += learn_and_test(
                experiment,
                suite.name,
                dataset,
                [ProtocolTests(protocol=FEW_SHOT, test_sets=(test,))],
                shots=k,
            )
    return results


def transfer(
    suite: Suite,
    experiment: Experiment,
    protocols: Sequence[str] = (CROSS_DATASET, DOMAIN_GENERALIZATION),
    *,
    source: str | None = None,
    datasets: Sequence[str] = (),
    shots: int = SHOTS,
) -> list[Result]:
    """Learn all classes of one dataset; test the same prompt on other datasets, domains, or both.

    CROSS_DATASET tests on all classes of every other dataset, DOMAIN_GENERALIZATION on the domains
    of the source (CoCoOp, sections 4.2 and 4.3). Both also test on the source.

    Args:
        suite: datasets to run on.
        experiment: rows, seeds and settings.
        protocols: CROSS_DATASET, DOMAIN_GENERALIZATION or both.
        source: training dataset; None: the suite's source.
        datasets: names of the targets; empty: all other available datasets.
        shots: training images per class.

    Raises:
        ConfigInvalid: there is no target, or the source has no domain.
        DatasetMissing: the source is not on disk.
    """
    dataset = suite.load(source or suite.source)
    protocol_tests = []
    if CROSS_DATASET in protocols:
        protocol_tests.append(_across_datasets(suite, dataset, datasets))
    if DOMAIN_GENERALIZATION in protocols:
        protocol_tests.append(_across_domains(dataset))
    return learn_and_test(experiment, suite.name, dataset, protocol_tests, shots=shots)


def _across_datasets(suite: Suite, source: BenchDataset, datasets: Sequence[str]) -> ProtocolTests:
    targets = [name for name in suite.chosen(datasets) if name != source.name]
    if not targets:
        raise ConfigInvalid(
            f"There is no dataset beside the source {source.name!r} to transfer to. Add a dataset."
        )
    tests = [_as_test(SOURCE, test_part(source), source.template)]
    for name in targets:
        target = suite.load(name)
        tests.append(_as_test(name, test_part(target), target.template))
    return ProtocolTests(protocol=CROSS_DATASET, test_sets=tuple(tests))


def _across_domains(source: BenchDataset) -> ProtocolTests:
    if not source.domains:
        raise ConfigInvalid(
            f"Dataset {source.name!r} has no domains. Name another source with --source, or add "
            f"domains with --domain NAME=FOLDER."
        )
    tests = [_as_test(SOURCE, test_part(source), source.template)]
    tests += [_as_test(name, images, source.template) for name, images in source.domains.items()]
    return ProtocolTests(protocol=DOMAIN_GENERALIZATION, test_sets=tuple(tests))


def _as_test(name: str, images: ImageSet, template: str) -> TestSet:
    return TestSet(name=name, images=images, template=template)


def test_part(dataset: BenchDataset) -> ImageSet:
    """Return the test images.

    Raises:
        DatasetInvalid: there are none.
    """
    if dataset.split.test is None:
        raise DatasetInvalid(
            f"Dataset {dataset.name!r} has no test images, and accuracy on training images is "
            f"meaningless. Add a folder test/, or a column split to its table.",
            source=dataset.name,
        )
    return dataset.split.test
