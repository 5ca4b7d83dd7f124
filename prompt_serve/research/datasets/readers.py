"""Read a public dataset: a split file, FGVC-Aircraft's lists, or ImageNet's folders."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prompt_serve.errors import DatasetInvalid
from prompt_serve.research.datasets.checks import published_faults, split_check
from prompt_serve.research.datasets.class_names import read_synset_names
from prompt_serve.research.datasets.locations import CLASS_NAMES, Place, how_to_get
from prompt_serve.research.datasets.spec import DatasetSpec
from prompt_serve.training.data.dataset import ImageSet, LabeledImage, RawDataset, Split, limited
from prompt_serve.training.data.folders import IMAGE_SUFFIXES
from prompt_serve.training.data.loading import checked
from prompt_serve.training.data.manifests import missing_files, read_split_file

_SYNSET = re.compile(r"n\d{8}")


def read_split(place: Place, spec: DatasetSpec) -> Split:
    """All images of a dataset, checked against what was published.

    Raises:
        DatasetInvalid: it is not the published dataset, or images are missing; all faults at once,
            and what to fetch.
    """
    way_out = [how_to_get(spec, place.folder)]
    source = f"{spec.title} in {place.folder}"
    try:
        listing = _listing(place, spec)
    except DatasetInvalid as error:  # a list that cannot be read at all, such as a saved web page
        raise DatasetInvalid(f"{source} cannot be read. {error.message}", way_out) from error
    return checked(listing, source, checks=[split_check(spec, place.images)], way_out=way_out)


def _listing(place: Place, spec: DatasetSpec) -> RawDataset:
    match spec.reader:
        case "split-file":
            return read_split_file(place.folder / spec.needs[0], place.images)
        case "variants":
            return read_variants(place)
        case "imagenet":
            return read_imagenet(place)
    raise ValueError(f"no split is read by {spec.reader!r}")


def read_domain(place: Place, spec: DatasetSpec, names: Mapping[str, str]) -> ImageSet:
    """A test set of ImageNet's classes, over those classes that it has.

    Args:
        place: of the test set.
        spec: its reader is "synsets" (a folder for each synset) or "numbers" (for each label).
        names: class names by synset, in the order of ImageNet's labels.

    Raises:
        DatasetInvalid: it is not the published one; all faults at once, and what to fetch.
    """
    synsets = list(names)
    folders = {
        synsets[int(name)] if spec.reader == "numbers" and _is_number(name, synsets) else name: path
        for name, path in _class_folders(place.images).items()
    }
    own = [synset for synset in synsets if synset in folders]
    strangers = sorted(set(folders) - set(own))
    images = ImageSet(
        class_names=tuple(names[synset] for synset in own),
        items=tuple(_labeled(own, folders)),
    )
    faults = limited([f"{folders[name]}: {CLASS_NAMES} has no such class" for name in strangers], 5)
    faults += published_faults(spec, place.images, images.class_names, {"test": images})
    if faults:
        raise DatasetInvalid(
            f"{spec.title} in {place.folder} is not as published:",
            [*faults, how_to_get(spec, place.folder)],
            source=str(place.folder),
        )
    return images


def read_imagenet(place: Place) -> RawDataset:
    """ImageNet's training and validation folders; the latter are the test images.

    Labels are those of the sorted synsets; images of a class are sorted by name.
    """
    names = read_synset_names(place.folder / CLASS_NAMES)
    train = _class_folders(place.images / "train")
    test = _class_folders(place.images / "val")
    known = [synset for synset in train if synset in names]
    listing = RawDataset(class_names=tuple(names[synset] for synset in known))
    listing.faults += limited(
        [f"{train[name]}: {CLASS_NAMES} has no such class" for name in train if name not in names],
        5,
    )
    unknown = [f"{place.images / 'val'} has no folder {name}" for name in known if name not in test]
    listing.faults += limited(unknown, 5)
    if not test:
        listing.faults.append("sort the images in val/ into a folder for each synset")
    for part, folders in (("train", train), ("test", test)):
        listing.items[part] = _labeled(known, folders)
    return listing


def read_variants(place: Place) -> RawDataset:
    """FGVC-Aircraft's own lists: ``variants.txt`` orders the classes, a line is "IMAGE VARIANT"."""
    names = tuple(_lines(place.folder / "variants.txt"))
    labels = {name: label for label, name in enumerate(names)}
    listing = RawDataset(class_names=names)
    for part in ("train", "val", "test"):
        file = place.folder / f"images_variant_{part}.txt"
        items = listing.items.setdefault(part, [])
        faults = []
        for number, line in enumerate(_lines(file), start=1):
            image, _, name = line.partition(" ")
            if name in labels:
                items.append(LabeledImage(place.images / f"{image}.jpg", labels[name]))
            else:
                faults.append(f"{file.name}, line {number}: variants.txt has no {name!r}")
        listing.faults += limited(faults)
    listing.faults += missing_files(listing)
    return listing


def _lines(path: Path) -> Iterable[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _class_folders(root: Path) -> dict[str, Path]:
    """Folders called like a synset or a number, sorted by name."""
    return {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if (_SYNSET.fullmatch(folder.name) or folder.name.isdecimal()) and folder.is_dir()
    }


def _labeled(synsets: Sequence[str], folders: Mapping[str, Path]) -> list[LabeledImage]:
    """The images of each folder that is there, labeled in the order of ``synsets``."""
    return [
        LabeledImage(path, label)
        for label, synset in enumerate(synsets)
        if synset in folders
        for path in _images(folders[synset])
    ]


def _is_number(name: str, synsets: list[str]) -> bool:
    return name.isdecimal() and int(name) < len(synsets)


def _images(folder: Path) -> list[Path]:
    # scandir, because it knows what is a file without asking for each of a million images.
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  # a Path each is slow
            and entry.is_file()
        )
    return [folder / name for name in names]
