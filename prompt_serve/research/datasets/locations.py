"""Find a dataset below the datasets root, and say what is lacking and where to get it."""

import re
from dataclasses import dataclass
from pathlib import Path

from prompt_serve.research.datasets.spec import DatasetSpec

CLASS_NAMES = "classnames.txt"  # synset and class name, one a line


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a dataset lies."""

    folder: Path
    images: Path


def find(root: Path, spec: DatasetSpec) -> Place | str:
    """Where a dataset lies below ``root``; else what is lacking, what to fetch and where to put it.

    Only folders are listed, no images, so this is quick for the largest dataset.
    """
    folders = folders_of(root, spec)
    if not folders:
        names = f"{spec.folders[0]}/"
        if spec.folders[1:]:
            names += f" (or {', '.join(f'{name}/' for name in spec.folders[1:])})"
        return f"there is no folder {names} in {root}. {how_to_get(spec, root / spec.folders[0])}"
    # The folder with the fewest gaps; the first, which has CoOp's name, among equals.
    folder = min(folders, key=lambda folder: len(_gaps(folder, spec)))
    gaps = _gaps(folder, spec)
    images = _images(folder, spec)
    if gaps or images is None:
        return f"{folder} has no {' and no '.join(gaps)}. {how_to_get(spec, folder)}"
    return Place(folder=folder, images=images)


def folders_of(root: Path, spec: DatasetSpec) -> list[Path]:
    """Folders below ``root`` that are called like the dataset; CoOp's name for it comes first."""
    found = [folder for name in spec.folders for folder in _called(root, name)]
    return list(dict.fromkeys(found))


def how_to_get(spec: DatasetSpec, folder: Path) -> str:
    """What to fetch, from where, and where to put it."""
    images = folder / spec.images[0]
    text = f"Fetch the images ({', '.join(spec.fetch)}) into {images}"
    if spec.holds:
        text += f", which holds {' and '.join(f'{name}/' for name in spec.holds)}"
    if spec.needs and spec.needs_page in spec.fetch:
        return f"{text}, and put {', '.join(spec.needs)} of the same archive into {folder}."
    if spec.needs:
        return f"{text}, and {', '.join(spec.needs)} ({spec.needs_page}) into {folder}."
    return f"{text}."


def plain(name: str) -> str:
    """A name without case and punctuation, by which folders are compared."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _called(root: Path, name: str) -> list[Path]:
    found = [root]
    for part in name.split("/"):
        found = [
            folder
            for parent in found
            for folder in sorted(_folders(parent), key=lambda folder: folder.name != part)
            if plain(folder.name) == plain(part)
        ]
    return found


def _gaps(folder: Path, spec: DatasetSpec) -> list[str]:
    gaps = [name for name in spec.needs if not (folder / name).is_file()]
    if _images(folder, spec) is None:
        held = f" with {' and '.join(f'{name}/' for name in spec.holds)}" if spec.holds else ""
        gaps.append(f"folder of images ({' or '.join(spec.images)}){held}")
    return gaps


def _images(folder: Path, spec: DatasetSpec) -> Path | None:
    for name in spec.images:
        images = folder / name
        held = all((images / part).is_dir() for part in spec.holds)
        # The folder itself is one of images only if classes lie in it.
        if images.is_dir() and held and (name != "." or _folders(images)):
            return images
    return None


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
