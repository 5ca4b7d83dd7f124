"""Read a folder with one folder a class, or with train/[val/]test folders of such."""

from pathlib import Path

from prompt_serve.training.data.dataset import PARTS, LabeledImage, RawDataset

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
)


def read_folder(root: Path) -> RawDataset:
    """List the images below ``root``; the folder of an image names its class.

    Classes are sorted by name, and the images of a class by path, so that the same folder gives
    the same labels everywhere. Files that are no images (by suffix) and hidden ones are ignored.
    """
    parts = _parts(root)
    if not parts:
        return _list({"train": root})
    return _list(parts)


def _parts(root: Path) -> dict[str, Path]:
    """The folders train, val and test of ``root``; none where it is a folder a class.

    A class may well be called "train" (the vehicle): it is a part only if it holds folders.
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
    listing = RawDataset(class_names=tuple(names))
    for part, classes in folders.items():
        strangers = sorted(set(classes) - set(names))
        listing.faults += [
            f"{classes[name]}: no training folder has this class" for name in strangers
        ]
        listing.items[part] = [
            LabeledImage(path, label)
            for label, name in enumerate(names)
            if name in classes
            for path in _images(classes[name])
        ]
    return listing


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )
