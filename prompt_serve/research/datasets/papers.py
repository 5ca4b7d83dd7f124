"""The eleven datasets of the papers, and ImageNet's four test sets of other looks, as a suite."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from prompt_serve.errors import DatasetMissing
from prompt_serve.research.datasets.class_names import read_synset_names
from prompt_serve.research.datasets.lazy_images import ImagesByName
from prompt_serve.research.datasets.locations import CLASS_NAMES, Place, find, folders_of
from prompt_serve.research.datasets.readers import read_domain, read_split
from prompt_serve.research.datasets.spec import (
    COOP,
    DatasetSpec,
    imagenet_domains,
    paper_datasets,
    template_of,
)
from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.training.data.dataset import ImageSet

SOURCE = "imagenet"


def papers_suite(
    root: Path,
    *,
    templates: str = COOP,
    datasets: Mapping[str, DatasetSpec] | None = None,
    domains: Mapping[str, DatasetSpec] | None = None,
) -> Suite:
    """The papers' datasets below ``root``, in the folders that CoOp's DATASETS.md names.

    Args:
        root: whose folders are imagenet, caltech-101, oxford_pets and so on.
        templates: whose hand-written sentences: "coop", "prograd", "kgcoop".
        datasets: other ones than the published eleven, by name; one of them is "imagenet".
        domains: other test sets of its classes.

    Raises:
        ConfigInvalid: there is no such set of templates.
    """
    datasets = paper_datasets() if datasets is None else datasets
    domains = imagenet_domains() if domains is None else domains
    places = {name: find(root, spec) for name, spec in {**datasets, **domains}.items()}
    there = {name: place for name, place in places.items() if isinstance(place, Place)}
    lacking = {name: text for name, text in places.items() if isinstance(text, str)}
    test_sets = {
        name: partial(domain_images, there[name], spec, root)
        for name, spec in domains.items()
        if name in there
    }
    return Suite(
        name="papers",
        datasets={
            name: partial(_load, there[name], spec, template_of(name, templates), test_sets)
            for name, spec in datasets.items()
            if name in there
        },
        source=SOURCE,
        missing={name: text for name, text in lacking.items() if name in datasets},
        missing_domains={name: text for name, text in lacking.items() if name in domains},
    )


def domain_images(place: Place, spec: DatasetSpec, root: Path) -> ImageSet:
    """A test set of ImageNet's classes; their names are those of ImageNet where that is there.

    Raises:
        DatasetMissing: there is no list of class names.
        DatasetInvalid: it is not the published test set.
    """
    imagenet = paper_datasets()[SOURCE]
    # ImageNet's own list first: the names must be those that the prompt was learned with.
    folders = [*folders_of(root, imagenet), place.folder]
    path = next((f / CLASS_NAMES for f in folders if (f / CLASS_NAMES).is_file()), None)
    if path is None:
        raise DatasetMissing(
            f"The class names of {spec.title} are not there: put {CLASS_NAMES} "
            f"({imagenet.needs_page}) into {root / imagenet.folders[0]} or {place.folder}.",
            name=spec.name,
        )
    return read_domain(place, spec, read_synset_names(path))


def _load(
    place: Place,
    spec: DatasetSpec,
    template: str,
    domains: Mapping[str, Callable[[], ImageSet]],
) -> BenchDataset:
    return BenchDataset(
        name=spec.name,
        title=spec.title,
        split=read_split(place, spec),
        template=template,
        domains=ImagesByName(domains if spec.name == SOURCE else {}),
        note=spec.note,
    )
