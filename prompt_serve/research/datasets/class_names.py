"""Class names: from folders or files, or from a list of names."""

from collections.abc import Iterable
from pathlib import Path, PurePath

from prompt_serve.errors import DatasetInvalid
from prompt_serve.research.datasets.spec import DatasetSpec


def class_name_of(file: PurePath, spec: DatasetSpec) -> str | None:
    """Return the class name that CoOp derives from an image's path; None if there is none.

    Args:
        file: path relative to the folder of images.
        spec: states which part of the path is the name, and which names are replaced.
    """
    match spec.names_from:
        case "folder":
            name = file.parent.name
        case "path":
            # a/apartment_building/outdoor -> outdoor apartment_building
            name = " ".join(reversed(file.parent.parts[1:]))
        case "file":
            name = file.stem.rpartition("_")[0].lower()
        case _:
            return None
    return spec.renamed.get(name, name)


def read_synset_names(path: Path) -> dict[str, str]:
    """Read class names by synset (n01440764), sorted by synset, which is the order of the labels.

    Two pairs of ImageNet's classes share a name in CLIP's list: missile and sunglasses. A prompt
    distinguishes classes by name, so the second name of a pair ends in "_". The text tower reads
    "_" as a space, so both get the same sentence, as in the papers.

    Raises:
        DatasetInvalid: the file is not a list of synsets and names.
    """
    names: dict[str, str] = {}
    faults: list[str] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        synset, _, name = line.strip().partition(" ")
        if name.strip():
            names[synset] = name.strip()
        elif line.strip():
            faults.append(f"line {number} is {line!r}; expected a synset and a name")
    if faults or not names:
        raise DatasetInvalid(f"{path} is not a list of class names:", faults or ["it is empty"])
    ordered = dict(sorted(names.items()))
    return dict(zip(ordered, _distinct(ordered.values()), strict=True))


def _distinct(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    distinct = []
    for name in names:
        while name in seen:
            name += "_"
        seen.add(name)
        distinct.append(name)
    return distinct
