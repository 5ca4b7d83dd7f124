"""Read a folder with one folder per class, or with train/[val/]test folders of such."""

from pathlib import Path

from prompt_serve.training.data.dataset import PARTS, LabeledImage, RawDataset

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
)


def read_folder(root: Path) -> RawDataset:
    """Return the images below ``root``; the folder of an image names its class.

    Classes are sorted by name, and the images of a class by path, so that the same folder gives
    the same labels everywhere. Hidden files, and files without an image suffix, are ignored.
    """
    return _list(part_folders(root) or {"train": root})


def part_folders(root: Path) -> dict[str, Path]:
    """Return the folders train, val and test of ``root``; empty where it has class folders.

    A class may be called "train" (the vehicle): it is a part only if it contains folders.
    """
    parts = {
        PARTS[folder.name.lower()]: folder
        for folder in _folders(root)
        if folder.name.lower() in PARTS and _folders(folder)
    }
    return parts if "train" in parts else {}


def _list(parts: dict[str, Path]) -> RawDataset:
    folders = {part: {f.name: f for f in _folders(root)} for part, root in parts.items()}
    names = sorted(folders["train"])
    dataset = RawDataset(class_names=tuple(names))
    for part, classes in folders.items():
        unknown = sorted(set(classes) - set(names))
        dataset.faults += [
            f"{classes[name]}: no training folder has this class" for name in unknown
        ]
        dataset.items[part] = [
            LabeledImage(path, label)
            for label, name in enumerate(names)
            if name in classes
            for path in images_below(classes[name])
        ]
    return dataset


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_below(folder: Path) -> list[Path]:
    """Return the image files at any depth, sorted; hidden ones are ignored."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
