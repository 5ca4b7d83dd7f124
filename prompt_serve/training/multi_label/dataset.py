"""Images with any number of labels: read from a table or from nested folders, and checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prompt_serve.errors import DatasetInvalid, PromptFileInvalid
from prompt_serve.image_folders import Ignored, find_images, nfc
from prompt_serve.prompts.prompt_file import check_class_names
from prompt_serve.training.data.dataset import ImageSet, LabeledImage, limited
from prompt_serve.training.data.features import file_digests
from prompt_serve.training.data.folders import part_folders
from prompt_serve.training.data.image_store import ImageStore
from prompt_serve.training.data.loading import image_faults, rename_faults
from prompt_serve.training.data.manifests import (
    is_split_file,
    part_of_row,
    place_of_row,
    split_fault,
)
from prompt_serve.training.data.opening import ImageTree, opened
from prompt_serve.training.data.tables import LABEL_SEPARATOR, USUAL_COLUMNS, ColumnNames, Table
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.types import BoolArray

_PARTS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class LabeledPart:
    """Images of a part, and the labels of each."""

    paths: tuple[Path, ...]
    labels: BoolArray  # (N, C)
    sources: Mapping[Path, str] = field(default_factory=dict)  # names of images that are copies

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def images(self) -> ImageSet:
        """The files as an image set; the label of its items means nothing."""
        items = tuple(LabeledImage(path, 0, self.sources.get(path, "")) for path in self.paths)
        return ImageSet(class_names=("any",), items=items)


@dataclass(frozen=True, kw_only=True)
class MultiLabelDataset:
    """Parts of a dataset by name, "train" first; those without images are left out."""

    class_names: tuple[str, ...]
    parts: Mapping[str, LabeledPart]
    notes: tuple[str, ...] = ()  # for the user


@dataclass(kw_only=True)
class _Listing:
    """Names of the labels of each image, by part, and the faults of the source."""

    images: dict[str, dict[Path, set[str]]] = field(default_factory=dict)
    sources: dict[Path, str] = field(default_factory=dict)  # names of images that are copies
    faults: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def names(self, parts: Iterable[str]) -> set[str]:
        return {n for part in parts for own in self.images.get(part, {}).values() for n in own}


def read_multi_label(
    source: str | Path,
    *,
    columns: ColumnNames = USUAL_COLUMNS,
    rename: Mapping[str, str] | None = None,
    to_learn: bool = True,
    workers: int = 4,
    progress: Progress = SILENT,
) -> MultiLabelDataset:
    """Read labeled images or nested folders, and decode every image once.

    The sources are those of ``read_dataset``, but for split files. In a table, the label of an
    image is empty, a label, or several separated by ``;``, and an image may be on several rows. In
    folders, every folder on the way to an image is one of its labels.

    Args:
        source: folder, table or archive, or the URL of one.
        columns: names of columns in tables.
        rename: new names of labels, by the name in the source.
        to_learn: expect training images with each label and without it.
        workers: threads that decode images.
        progress: shows a progress bar.

    Raises:
        DatasetInvalid: lists all faults.
    """
    if is_split_file(str(source)):
        raise DatasetInvalid(
            f"{source} has one class per image; expected a folder or a table for --multi-label.", []
        )
    store = ImageStore(workers=workers, progress=progress)
    with opened(str(source), columns, store) as content:
        listing = _read_table(content) if isinstance(content, Table) else _read_folders(content)
    rename = rename or {}
    found = tuple(sorted(listing.names(_PARTS)))
    faults = [*listing.faults, *rename_faults(found, rename)]
    rename = {nfc(old): new for old, new in rename.items()}
    class_names = tuple(rename.get(nfc(name), name) for name in found)
    dataset = MultiLabelDataset(
        class_names=class_names,
        parts={
            part: _labeled_part(listing.images[part], found, listing.sources)
            for part in _PARTS
            if listing.images.get(part)
        },
        notes=listing.notes,
    )
    faults += _label_faults(dataset) if to_learn else _name_faults(class_names)
    items = [item for part in dataset.parts.values() for item in part.images.items]
    with progress.bar("checking images", len(items), "img") as advance:
        faults += limited(image_faults(items, workers=workers, advance=advance))
    if faults:
        raise DatasetInvalid(f"{source} cannot be used:", faults, source=str(source))
    return dataset


def matched(dataset: MultiLabelDataset, class_names: Sequence[str]) -> dict[str, LabeledPart]:
    """Return the parts with labels in the order of ``class_names``, those of a prompt.

    Labels without images are allowed: an image may lack any of them.

    Raises:
        DatasetInvalid: the images have labels that the prompt does not know.
    """
    unknown = [name for name in dataset.class_names if name not in set(class_names)]
    if unknown:
        raise DatasetInvalid(
            "The labels of the images differ from those of the prompt (rename them with "
            "--class-name OLD=NEW):",
            limited([f"label {name!r} is not one of the prompt's" for name in unknown]),
        )
    places = [class_names.index(name) for name in dataset.class_names]
    parts = {}
    for name, part in dataset.parts.items():
        labels = np.zeros((len(part), len(class_names)), dtype=bool)
        labels[:, places] = part.labels
        parts[name] = replace(part, labels=labels)
    return parts


def conflicting_copies(dataset: MultiLabelDataset, *, workers: int = 4) -> list[tuple[Path, Path]]:
    """Return pairs of files with equal bytes and different labels, which count as two images."""
    seen: dict[str, tuple[Path, bytes]] = {}
    pairs = []
    for part in dataset.parts.values():
        digests = file_digests(part.paths, workers=workers)
        for path, digest, labels in zip(part.paths, digests, part.labels, strict=True):
            other, its_labels = seen.setdefault(digest, (path, labels.tobytes()))
            if its_labels != labels.tobytes():
                pairs.append((other, path))
    return pairs


def _read_folders(tree: ImageTree) -> _Listing:
    ignored = Ignored()
    parts = part_folders(tree.root, Ignored()) or {"train": tree.root}
    listing = _Listing()
    for part, folder in parts.items():
        files = tree.located(find_images(folder, ignored))
        listing.images[part] = {
            file: set(map(nfc, path.relative_to(folder).parts[:-1]))
            for path, (file, _) in files.items()
        }
        listing.sources |= {file: source for file, source in files.values() if source}
    listing.notes = (f"{ignored}.",) if ignored else ()
    return listing


def _read_table(table: Table) -> _Listing:
    if table.not_utf8:
        raise DatasetInvalid(table.not_utf8, [])
    listing = _Listing(notes=tuple(table.notes))
    faults = table.faults
    part_of: dict[Path, str] = {}
    for number, row in enumerate(table.rows, start=1):
        part, place = part_of_row(row), place_of_row(number, row)
        if part is None:
            faults.append(split_fault(number, row))
            continue
        if not row["path"] or "file" not in row:
            faults.append(f"{place}: {'no such file' if row['path'] else 'path is empty'}")
            continue
        image = Path(row["file"])
        names = {nfc(name.strip()) for name in row["label"].split(LABEL_SEPARATOR)} - {""}
        if part_of.setdefault(image, part) != part:
            faults.append(f"{place}: {row['path']} is in {part_of[image]} and in {part}")
            continue
        listing.images.setdefault(part, {}).setdefault(image, set()).update(names)
        if "source" in row:
            listing.sources[image] = row["source"]
    listing.faults += limited(faults)
    listing.faults += _without_missing_files(listing)
    return listing


def _without_missing_files(listing: _Listing) -> list[str]:
    """Remove files that do not exist, so that nothing opens them; return a line for each."""
    missing = []
    for part, images in listing.images.items():
        gone = {path for path in images if not path.is_file()}
        missing += [path for path in images if path in gone]
        listing.images[part] = {p: names for p, names in images.items() if p not in gone}
    return limited([f"{path}: no such file" for path in missing])


def _labeled_part(
    images: Mapping[Path, set[str]], names: Sequence[str], sources: Mapping[Path, str]
) -> LabeledPart:
    places = {name: place for place, name in enumerate(names)}
    labels = np.zeros((len(images), len(names)), dtype=bool)
    for row, own in enumerate(images.values()):
        labels[row, [places[name] for name in own]] = True
    return LabeledPart(paths=tuple(images), labels=labels, sources=sources)


def _label_faults(dataset: MultiLabelDataset) -> list[str]:
    """Return the labels that cannot be learned, val images included."""
    if not dataset.class_names:
        return _name_faults(())
    labels = training_part(dataset).labels
    counts = labels.sum(axis=0)
    faults = [
        f"label {name!r} has no training image"
        if count == 0
        else f"every training image has the label {name!r}; add images without it"
        for name, count in zip(dataset.class_names, counts, strict=True)
        if count in (0, len(labels))
    ]
    return limited([*faults, *_name_faults(dataset.class_names)])


def training_part(dataset: MultiLabelDataset) -> LabeledPart:
    """Return all images but those for testing."""
    parts = [part for name, part in dataset.parts.items() if name != "test"]
    empty = np.zeros((0, len(dataset.class_names)), dtype=bool)
    return LabeledPart(
        paths=tuple(path for part in parts for path in part.paths),
        labels=np.concatenate([empty, *(part.labels for part in parts)]),
    )


def _name_faults(class_names: tuple[str, ...]) -> list[str]:
    if not class_names:
        return ["it has no image with a label"]
    try:
        check_class_names(class_names)
    except PromptFileInvalid as error:
        return [str(error)]
    return []
