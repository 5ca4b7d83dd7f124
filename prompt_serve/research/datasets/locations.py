"""Find a dataset below the datasets root, or explain what is missing and where to get it."""

import re
from dataclasses import dataclass
from pathlib import Path

from prompt_serve.research.datasets.spec import DatasetSpec

CLASS_NAMES = "classnames.txt"  # one synset and class name per line


@dataclass(frozen=True, kw_only=True)
class DatasetLocation:
    """Folder of a dataset and of its images."""

    folder: Path
    images: Path


def find_dataset(root: Path, spec: DatasetSpec) -> DatasetLocation | str:
    """Return the location of a dataset below ``root``, or a text on what is missing.

    The text says what to download and where to put it. Only folders are listed, no images, so this
    is fast even for the largest dataset.
    """
    folders = candidate_folders(root, spec)
    if not folders:
        names = f"{spec.folders[0]}/"
        if spec.folders[1:]:
            names += f" (or {', '.join(f'{name}/' for name in spec.folders[1:])})"
        return (
            f"there is no folder {names} in {root}. {download_hint(spec, root / spec.folders[0])}"
        )
    # The folder with the fewest gaps; the first, which has CoOp's name, among equals.
    folder = min(folders, key=lambda folder: len(_gaps(folder, spec)))
    gaps = _gaps(folder, spec)
    images = _images(folder, spec)
    if gaps or images is None:
        return f"{folder} has no {' and no '.join(gaps)}. {download_hint(spec, folder)}"
    return DatasetLocation(folder=folder, images=images)


def candidate_folders(root: Path, spec: DatasetSpec) -> list[Path]:
    """Return folders below ``root`` with a name of the dataset; CoOp's name comes first."""
    found = [folder for name in spec.folders for folder in _called(root, name)]
    return list(dict.fromkeys(found))


def download_hint(spec: DatasetSpec, folder: Path) -> str:
    """Describe what to download, from where, and where to put it."""
    images = folder / spec.images[0]
    text = f"Download the images ({', '.join(spec.fetch)}) into {images}"
    if spec.holds:
        text += f", which holds {' and '.join(f'{name}/' for name in spec.holds)}"
    if spec.needs and spec.needs_page in spec.fetch:
        return f"{text}, and put {', '.join(spec.needs)} of the same archive into {folder}."
    if spec.needs:
        return f"{text}, and {', '.join(spec.needs)} ({spec.needs_page}) into {folder}."
    return f"{text}."


def normalized_name(name: str) -> str:
    """Strip case and punctuation from a name, for comparing folders."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _called(root: Path, name: str) -> list[Path]:
    found = [root]
    for part in name.split("/"):
        found = [
            folder
            for parent in found
            for folder in sorted(_folders(parent), key=lambda folder: folder.name != part)
            if normalized_name(folder.name) == normalized_name(part)
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
        # The dataset folder itself qualifies only if it contains class folders.
        if images.is_dir() and held and (name != "." or _folders(images)):
            return images
    return None


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
