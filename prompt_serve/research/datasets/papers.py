"""The eleven datasets of the papers, and ImageNet's four domains, as a suite."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from prompt_serve.errors import DatasetMissing
from prompt_serve.research.datasets.class_names import read_synset_names
from prompt_serve.research.datasets.lazy_images import ImagesByName
from prompt_serve.research.datasets.locations import (
    CLASS_NAMES,
    DatasetLocation,
    candidate_folders,
    find_dataset,
)
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
    """Find the papers' datasets below ``root``, in the folders that CoOp's DATASETS.md names.

    Args:
        root: folder with imagenet/, caltech-101/, oxford_pets/ and so on.
        templates: set of hand-written sentences: "coop", "prograd", "kgcoop".
        datasets: specs by name, one of them "imagenet"; None: the published eleven.
        domains: specs of domains of ImageNet's classes; None: the published four.

    Raises:
        ConfigInvalid: the set of templates is unknown.
    """
    datasets = paper_datasets() if datasets is None else datasets
    domains = imagenet_domains() if domains is None else domains
    found = {name: find_dataset(root, spec) for name, spec in {**datasets, **domains}.items()}
    locations = {name: one for name, one in found.items() if isinstance(one, DatasetLocation)}
    missing = {name: text for name, text in found.items() if isinstance(text, str)}
    test_sets = {
        name: partial(domain_images, locations[name], spec, root)
        for name, spec in domains.items()
        if name in locations
    }
    return Suite(
        name="papers",
        datasets={
            name: partial(_load, locations[name], spec, template_of(name, templates), test_sets)
            for name, spec in datasets.items()
            if name in locations
        },
        source=SOURCE,
        missing={name: text for name, text in missing.items() if name in datasets},
        missing_domains={name: text for name, text in missing.items() if name in domains},
    )


def domain_images(location: DatasetLocation, spec: DatasetSpec, root: Path) -> ImageSet:
    """Read a domain of ImageNet's classes, with ImageNet's class names if it is on disk.

    Raises:
        DatasetMissing: there is no list of class names.
        DatasetInvalid: it is not the published test set.
    """
    imagenet = paper_datasets()[SOURCE]
    # ImageNet's list first: the names must match those that the prompt was trained with.
    folders = [*candidate_folders(root, imagenet), location.folder]
    path = next((f / CLASS_NAMES for f in folders if (f / CLASS_NAMES).is_file()), None)
    if path is None:
        raise DatasetMissing(
            f"The class names of {spec.title} are missing: put {CLASS_NAMES} "
            f"({imagenet.needs_page}) into {root / imagenet.folders[0]} or {location.folder}.",
            name=spec.name,
        )
    return read_domain(location, spec, read_synset_names(path))


def _load(
    location: DatasetLocation,
    spec: DatasetSpec,
    template: str,
    domains: Mapping[str, Callable[[], ImageSet]],
) -> BenchDataset:
    return BenchDataset(
        name=spec.name,
        split=read_split(location, spec),
        template=template,
        domains=ImagesByName(domains if spec.name == SOURCE else {}),
    )
