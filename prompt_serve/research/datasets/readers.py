"""Read a public dataset: a split file, FGVC-Aircraft's lists, or ImageNet's folders."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prompt_serve.errors import DatasetInvalid
from prompt_serve.image_folders import IMAGE_SUFFIXES
from prompt_serve.research.datasets.checks import published_faults, split_check
from prompt_serve.research.datasets.class_names import read_synset_names
from prompt_serve.research.datasets.locations import CLASS_NAMES, DatasetLocation, download_hint
from prompt_serve.research.datasets.spec import DatasetSpec
from prompt_serve.training.data.dataset import ImageSet, LabeledImage, RawDataset, Split, limited
from prompt_serve.training.data.loading import checked
from prompt_serve.training.data.manifests import missing_files, read_split_file

_SYNSET = re.compile(r"n\d{8}")


def read_split(location: DatasetLocation, spec: DatasetSpec) -> Split:
    """Read all images of a dataset and check them against the published split.

    Raises:
        DatasetInvalid: it is not the published dataset, or images are missing; lists all faults and
            what to download.
    """
    way_out = [download_hint(spec, location.folder)]
    source = f"{spec.title} in {location.folder}"
    try:
        listing = _listing(location, spec)
    except DatasetInvalid as error:  # an unreadable list, such as a saved web page
        raise DatasetInvalid(f"{source} cannot be read. {error.message}", way_out) from error
    return checked(listing, source, checks=[split_check(spec, location.images)], way_out=way_out)


def _listing(location: DatasetLocation, spec: DatasetSpec) -> RawDataset:
    match spec.reader:
        case "split-file":
            return read_split_file(location.folder / spec.needs[0], location.images)
        case "variants":
            return read_variants(location)
        case "imagenet":
            return read_imagenet(location)
    raise ValueError(f"no split is read by {spec.reader!r}")


def read_domain(location: DatasetLocation, spec: DatasetSpec, names: Mapping[str, str]) -> ImageSet:
    """Read a domain of ImageNet's classes, over the classes that it has.

    Args:
        location: folders of the domain.
        spec: its reader is "synsets" (one folder per synset) or "numbers" (one per label).
        names: class names by synset, in the order of ImageNet's labels.

    Raises:
        DatasetInvalid: it is not the published one; lists all faults and what to download.
    """
    synsets = list(names)
    folders = {
        synsets[int(name)] if spec.reader == "numbers" and _is_number(name, synsets) else name: path
        for name, path in _class_folders(location.images).items()
    }
    known = [synset for synset in synsets if synset in folders]
    unknown = sorted(set(folders) - set(known))
    images = ImageSet(
        class_names=tuple(names[synset] for synset in known),
        items=tuple(_labeled(known, folders)),
    )
    faults = limited([f"{folders[name]}: {CLASS_NAMES} has no such class" for name in unknown], 5)
    faults += published_faults(spec, location.images, images.class_names, {"test": images})
    if faults:
        raise DatasetInvalid(
            f"{spec.title} in {location.folder} is not as published:",
            [*faults, download_hint(spec, location.folder)],
            source=str(location.folder),
        )
    return images


def read_imagenet(location: DatasetLocation) -> RawDataset:
    """Read ImageNet's training and validation folders; the latter are the test images.

    Labels follow the sorted synsets; images of a class are sorted by name.
    """
    names = read_synset_names(location.folder / CLASS_NAMES)
    train = _class_folders(location.images / "train")
    test = _class_folders(location.images / "val")
    known = [synset for synset in train if synset in names]
    listing = RawDataset(class_names=tuple(names[synset] for synset in known))
    listing.faults += limited(
        [f"{train[name]}: {CLASS_NAMES} has no such class" for name in train if name not in names],
        5,
    )
    absent = [
        f"{location.images / 'val'} has no folder {name}" for name in known if name not in test
    ]
    listing.faults += limited(absent, 5)
    if not test:
        listing.faults.append("sort the images in val/ into one folder per synset")
    for part, folders in (("train", train), ("test", test)):
        listing.items[part] = _labeled(known, folders)
    return listing


def read_variants(location: DatasetLocation) -> RawDataset:
    """Read FGVC-Aircraft's lists; ``variants.txt`` orders the classes, lines: "IMAGE VARIANT"."""
    names = tuple(_lines(location.folder / "variants.txt"))
    labels = {name: label for label, name in enumerate(names)}
    listing = RawDataset(class_names=names)
    for part in ("train", "val", "test"):
        file = location.folder / f"images_variant_{part}.txt"
        items = listing.items.setdefault(part, [])
        faults = []
        for number, line in enumerate(_lines(file), start=1):
            image, _, name = line.partition(" ")
            if name in labels:
                items.append(LabeledImage(location.images / f"{image}.jpg", labels[name]))
            else:
                faults.append(f"{file.name}, line {number}: variants.txt has no {name!r}")
        listing.faults += limited(faults)
    listing.faults += missing_files(listing)
    return listing


def _lines(path: Path) -> Iterable[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _class_folders(root: Path) -> dict[str, Path]:
    """Return folders named after a synset or a number, sorted by name."""
    return {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if (_SYNSET.fullmatch(folder.name) or folder.name.isdecimal()) and folder.is_dir()
    }


def _labeled(synsets: Sequence[str], folders: Mapping[str, Path]) -> list[LabeledImage]:
    """Return the images of each existing folder, labeled in the order of ``synsets``."""
    return [
        LabeledImage(path, label)
        for label, synset in enumerate(synsets)
        if synset in folders
        for path in _images(folders[synset])
    ]


def _is_number(name: str, synsets: list[str]) -> bool:
    return name.isdecimal() and int(name) < len(synsets)


def _images(folder: Path) -> list[Path]:
    # scandir knows which entries are files without a stat call for each of a million images.
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  # Path objects are slow
            and entry.is_file()
        )
    return [folder / name for name in names]
