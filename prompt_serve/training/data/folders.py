"""Read a folder with one folder per class, or with train/[val/]test folders of such."""

from collections.abc import Sequence
from pathlib import Path

from prompt_serve.image_folders import (
    FolderId,
    Ignored,
    contents,
    find_images,
    folder_id,
    nfc,
    path_key,
)
from prompt_serve.training.data.dataset import LabeledImage, RawDataset, part_of

Classes = dict[str, list[Path]]  # folders of each class: two if both spellings of its name occur


def read_folder(root: Path) -> RawDataset:
    """Return the images below ``root``; the folder of an image names its class.

    Classes are sorted by name, and the images of a class by path, so that the same folder gives
    the same labels everywhere; names are compared in one Unicode spelling. The class folders, or
    the folders train, val and test, may lie in one more folder. A note tells what was ignored.
    """
    dataset, ignored = RawDataset(), Ignored()
    parts = _parts(_unwrapped(root, ignored), ignored, dataset)
    classes = {part: _classes(folders) for part, folders in parts.items()}
    visited = _visited([root, *(f.parent for fs in parts.values() for f in fs)], classes, ignored)
    names = tuple(sorted(classes["train"]))
    dataset.class_names = names
    for part, folders in classes.items():
        dataset.faults += [
            f"{folders[name][0]}: no training folder has this class"
            for name in sorted(set(folders) - set(names))
        ]
        dataset.items[part] = [
            LabeledImage(path, label)
            for label, name in enumerate(names)
            for path in _images(folders.get(name, ()), ignored, visited)
        ]
    if ignored:
        dataset.notes.append(f"{ignored}.")
    return dataset


def part_folders(root: Path, ignored: Ignored) -> dict[str, Path]:
    """Return the folders of parts in ``root``, for images with any number of labels.

    Empty if there is no folder of training images; all folders are then labels.
    """
    _, folders = contents(root, ignored)
    found = {
        part: folder
        for folder in reversed(folders)
        if (part := part_of(folder.name)) and contents(folder, Ignored())[1]
    }
    return found if "train" in found else {}


def _unwrapped(root: Path, ignored: Ignored) -> Path:
    """Return the only folder in ``root`` if it has folders and no images; else ``root``."""
    beside = Ignored()
    images, folders = contents(root, beside)
    if images or len(folders) != 1:
        return root
    images, inside = contents(folders[0], Ignored())
    if images or not inside:
        return root
    ignored.add(beside)
    return folders[0]


def _parts(root: Path, ignored: Ignored, dataset: RawDataset) -> dict[str, list[Path]]:
    """Return the class folders of each part; all are of part train if there are no parts.

    A class may be called "train" (the vehicle): it is a part only if it contains folders.
    """
    images, folders = contents(root, ignored)
    found: dict[str, list[Path]] = {}
    for folder in folders:
        part = part_of(folder.name)
        if part and contents(folder, Ignored())[1]:
            found.setdefault(part, []).append(folder)
    ignored.add_files("outside class folders", len(images))
    if "train" not in found:
        if folders and len(folders) == sum(map(len, found.values())):
            dataset.faults.append(
                f"there are {' and '.join(found)} images, but no folder of train images; to use "
                f"one part alone, name its folder"
            )
        return {"train": folders}
    dataset.faults += [
        f"{' and '.join(folder.name for folder in several)} are all folders of {part} images; "
        f"expected one"
        for part, several in found.items()
        if len(several) > 1
    ]
    beside = len(folders) - sum(map(len, found.values()))
    ignored.add_folders("beside train, val and test", beside)
    return {part: _class_folders(part, several[0], ignored) for part, several in found.items()}


def _class_folders(part: str, folder: Path, ignored: Ignored) -> list[Path]:
    """Return the class folders of a part, which may be nested once in a folder named alike."""
    inner = _unwrapped(folder, Ignored())
    if inner != folder and part_of(inner.name) == part:
        folder = _unwrapped(folder, ignored)
    images, folders = contents(folder, ignored)
    ignored.add_files("outside class folders", len(images))
    return folders


def _classes(folders: Sequence[Path]) -> Classes:
    classes: Classes = {}
    for folder in folders:
        classes.setdefault(nfc(folder.name), []).append(folder)
    return classes


def _visited(above: Sequence[Path], classes: dict[str, Classes], ignored: Ignored) -> set[FolderId]:
    """Return the folders that links do not lead to: all classes, and the folders above them.

    A class that is a link to one of them, or to another class, is removed.
    """
    listed = [(part, name, f) for part in classes for name, fs in classes[part].items() for f in fs]
    visited = {folder_id(folder) for folder in above}
    visited |= {folder_id(folder) for _, _, folder in listed if not folder.is_symlink()}
    for part, name, folder in listed:
        if not folder.is_symlink():
            continue
        if folder_id(folder) in visited:
            ignored.add_folders("visited before", 1)
            classes[part][name].remove(folder)
            if not classes[part][name]:
                del classes[part][name]
        visited.add(folder_id(folder))
    return visited


def _images(folders: Sequence[Path], ignored: Ignored, visited: set[FolderId]) -> list[Path]:
    found = [path for f in folders for path in find_images(f, ignored, visited=visited)]
    return sorted(found, key=path_key)
