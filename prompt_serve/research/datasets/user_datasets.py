"""User datasets as a suite: folders, CSV or Parquet tables, split files."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from prompt_serve.errors import ConfigInvalid, DatasetInvalid
from prompt_serve.research.datasets.lazy_images import ImagesByName
from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.training.data.dataset import ImageSet
from prompt_serve.training.data.loading import read_dataset

TEMPLATE = "a photo of a {}."


def folder_suite(
    sources: Sequence[Path],
    *,
    source: str | None = None,
    domains: Mapping[str, Path] | None = None,
    template: str = TEMPLATE,
) -> Suite:
    """Build a suite of datasets in the formats of ``read_dataset``, named after file or folder.

    Args:
        sources: folders with one folder per class in train/, [val/] and test/; or tables with the
            columns path, label and split; or split files of CoOp.
        source: name of the training dataset of cross-dataset transfer and domain generalization;
            None: the first.
        domains: domains of the source by name, in the same formats, with all or some of its
            classes. Their test images are used, or all images if they have no test part.
        template: hand-written sentence with {}, for the zero-shot row.

    Raises:
        ConfigInvalid: there is no dataset, or none named ``source``.
    """
    paths = _named(sources)
    if not paths:
        raise ConfigInvalid("There is no dataset: name at least one folder or file.")
    source = next(iter(paths)) if source is None else source
    if source not in paths:
        raise ConfigInvalid(f"No dataset is named {source!r}; there are {', '.join(paths)}.")
    domains = domains or {}
    test_sets = {
        name: partial(_domain, path, paths[source])
        for name, path in domains.items()
        if path.exists()
    }
    return Suite(
        name="user",
        datasets={
            name: partial(_load, name, path, template, test_sets if name == source else {})
            for name, path in paths.items()
            if path.exists()
        },
        source=source,
        missing={name: _missing(path) for name, path in paths.items() if not path.exists()},
        missing_domains={
            name: _missing(path) for name, path in domains.items() if not path.exists()
        },
    )


def _named(sources: Sequence[Path]) -> dict[str, Path]:
    """Return paths by the name of the file or folder; repeated names get a number."""
    named: dict[str, Path] = {}
    for path in sources:
        stem = path.resolve().stem if path.is_file() else path.resolve().name
        name, number = stem, 2
        while name in named:
            name, number = f"{stem}-{number}", number + 1
        named[name] = path
    return named


def _load(
    name: str, path: Path, template: str, domains: Mapping[str, partial[ImageSet]]
) -> BenchDataset:
    return BenchDataset(
        name=name,
        split=read_dataset(path),
        template=template,
        domains=ImagesByName(domains),
    )


def _domain(path: Path, source: Path) -> ImageSet:
    split = read_dataset(path)
    images = split.test or split.train
    known = set(read_dataset(source).class_names)
    faults = [
        f"class {name!r} is not one of those in {source}"
        for name in images.class_names
        if name not in known
    ]
    if faults:
        raise DatasetInvalid(f"{path} is not a domain of {source}:", faults, source=str(path))
    return images


def _missing(path: Path) -> str:
    return f"there is no folder or file {path}. Put a folder with train/ and test/ there."
