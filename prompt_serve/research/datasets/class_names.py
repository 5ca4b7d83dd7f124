"""What classes are called: after their folders or files, or as a list of names says."""

from collections.abc import Iterable
from pathlib import Path, PurePath

from prompt_serve.errors import DatasetInvalid
from prompt_serve.research.datasets.spec import DatasetSpec


def class_name_of(file: PurePath, spec: DatasetSpec) -> str | None:
    """The class of an image by its path, as CoOp cleans names; None where the path has none.

    Args:
        file: relative to the folder of images.
        spec: says where in the path the name is, and which names are replaced.
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
    """Class names by synset (n01440764), in the order of the synsets, which is that of the labels.

    Two pairs of ImageNet's classes have one name in CLIP's list, missile and sunglasses. A prompt
    tells classes apart by name, so the second of them ends in "_": the text tower, which reads
    "_" as a space, sees the same sentence for both, as in the papers.

    Raises:
        DatasetInvalid: it is no list of synsets and names.
    """
    names: dict[str, str] = {}
    faults: list[str] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        synset, _, name = line.strip().partition(" ")
        if name.strip():
            names[synset] = name.strip()
        elif line.strip():
            faults.append(f"line {number} is {line!r}; wanted a synset and a name")
    if faults or not names:
        raise DatasetInvalid(f"{path} is no list of class names:", faults or ["it is empty"])
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
