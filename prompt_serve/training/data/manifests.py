"""Datasets with a row per image: a table of any kind, or CoOp's split file."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prompt_serve.errors import DatasetInvalid
from prompt_serve.image_folders import nfc
from prompt_serve.sources.files import is_url
from prompt_serve.text_files import decode_text, is_utf8, local_path, read_text
from prompt_serve.training.data.dataset import LabeledImage, RawDataset, limited, part_of
from prompt_serve.training.data.tables import LABEL_SEPARATOR, Row, Table

# Image folders beside a split_zhou_*.json in the layouts of CoOp's DATASETS.md.
_IMAGE_FOLDERS = (
    ".",
    "images",
    "jpg",
    "2750",
    "101_ObjectCategories",
    "SUN397",
    "UCF-101-midframes",
)

_BEGIN_BYTES = 4096


def labeled_images(table: Table) -> RawDataset:
    """Return the images of a table with one label per image.

    Classes are sorted by name; images keep the order of the table.

    Raises:
        DatasetInvalid: the table is text that is not UTF-8.
    """
    faults = table.faults
    several: list[str] = []
    named: list[_Named] = []
    for number, row in enumerate(table.rows, start=1):
        part = part_of_row(row)
        name = row["label"]
        place = place_of_row(number, row)
        if part is None:
            faults.append(split_fault(number, row))
        elif LABEL_SEPARATOR in name:
            several.append(f"{place}: {name!r}")
        elif not row["path"] or not name:
            faults.append(f"{place}: {'label' if row['path'] else 'path'} is empty")
        elif "file" not in row:
            faults.append(f"{place}: no such file")
        else:
            named.append(_Named(part, Path(row["file"]), nfc(name), row.get("source", "")))
    dataset = _labeled(named, [*_several_labels(several, named), *limited(faults)])
    dataset.notes += table.notes
    if table.not_utf8 and not _names_are_files(dataset, named):
        raise DatasetInvalid(table.not_utf8, [])  # the faults of its rows have this one cause
    return dataset


class _Named(NamedTuple):
    part: str
    file: Path
    label: str
    source: str


def _names_are_files(dataset: RawDataset, named: Sequence[_Named]) -> bool:
    """Return True where what is not UTF-8 in a table is the name of files that are there."""
    return all(map(is_utf8, dataset.class_names)) and all(
        one.file.is_file() for one in named if not is_utf8(str(one.file))
    )


def place_of_row(number: int, row: Row) -> str:
    """Return how a row is called in messages: its image if that is in the table, or its number."""
    return row.get("source") or f"row {number}"


def part_of_row(row: Row) -> str | None:
    """Return the part of a row; None if its ``split`` is not the name of one."""
    return part_of(row["split"]) if "split" in row else "train"


def split_fault(number: int, row: Row) -> str:
    """Return the fault of a row whose ``split`` is not the name of a part."""
    return f"{place_of_row(number, row)}: split {row['split']!r}; expected train, val or test"


def _several_labels(cells: Sequence[str], named: Sequence[_Named]) -> list[str]:
    """Return a line if images have several labels, in one cell or on several rows."""
    names: dict[Path, dict[str, None]] = {}
    for one in named:
        names.setdefault(one.file, {})[one.label] = None
    found = [*cells, *(f"{f}: {', '.join(own)}" for f, own in names.items() if len(own) > 1)]
    if not found:
        return []
    return [
        f"images with several labels: {len(found):,} (the first is {found[0]}); learn them with "
        f"train --multi-label"
    ]


def is_split_file(source: str) -> bool:
    """Return True for JSON on this machine that is not a list of objects, which is a table."""
    if not source.lower().endswith(".json") or is_url(source) or not Path(source).is_file():
        return False
    with Path(source).open("rb") as file:
        begin = file.read(_BEGIN_BYTES)
    return not re.match(r"\s*\[\s*\{", decode_text(begin))


def read_split_file(path: Path, images: Path | None) -> RawDataset:
    """Read CoOp's ``split_zhou_*.json``: lists of [path, label, class name] for train, val, test.

    Args:
        path: split file.
        images: the folder that its paths are relative to; guessed beside the file where None.
    """
    parts, faults = _read_parts(path)
    names = _names_by_label(parts, faults)
    root = images or _guess_root(path, parts.get("train", []))
    if root is None:
        tried = ", ".join(str(path.parent / folder) for folder in _IMAGE_FOLDERS)
        faults.append(f"its images are in none of {tried}; name their folder with --images")
        return RawDataset(class_names=tuple(names.values()), faults=faults)
    dataset = RawDataset(class_names=tuple(names.values()), faults=faults)
    # Labels may have gaps (a fault already listed); the further checks need dense ones.
    dense = {label: index for index, label in enumerate(names)}
    for part, entries in parts.items():
        dataset.items[part] = [
            LabeledImage(local_path(file, root), dense[label]) for file, label, _ in entries
        ]
    dataset.faults += missing_files(dataset)
    return dataset


def _labeled(named: Sequence[_Named], faults: list[str]) -> RawDataset:
    names = sorted({one.label for one in named if one.part == "train"})
    labels = {name: label for label, name in enumerate(names)}
    dataset = RawDataset(class_names=tuple(names), faults=faults)
    unknown = sorted({one.label for one in named} - set(names))
    dataset.faults += limited([f"label {name!r} has no training image" for name in unknown])
    for one in named:
        if one.label in labels:
            item = LabeledImage(one.file, labels[one.label], one.source)
            dataset.items.setdefault(one.part, []).append(item)
    dataset.faults += missing_files(dataset)
    return dataset


def missing_files(dataset: RawDataset) -> list[str]:
    """Remove files that do not exist from the dataset; return a line for each of them."""
    paths = dict.fromkeys(item.path for items in dataset.items.values() for item in items)
    missing = [path for path in paths if not path.is_file()]
    # Removed so that later checks do not open them.
    gone = set(missing)
    for part, items in dataset.items.items():
        dataset.items[part] = [item for item in items if item.path not in gone]
    return limited([f"{path}: no such file" for path in missing])


def _read_parts(path: Path) -> tuple[dict[str, list[tuple[str, int, str]]], list[str]]:
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DatasetInvalid(f"{path} is not JSON: {error}.", []) from error
    if not isinstance(document, dict) or not isinstance(document.get("train"), list):
        raise DatasetInvalid(
            f"{path} is not a split file: expected an object with the lists train, val and test.",
            [],
        )
    parts: dict[str, list[tuple[str, int, str]]] = {}
    faults: list[str] = []
    for part in ("train", "val", "test"):
        for index, entry in enumerate(document.get(part) or ()):
            match entry:
                case [str(file), int(label), str(name)] if label >= 0:
                    parts.setdefault(part, []).append((file, label, name))
                case _:
                    faults.append(
                        f"{part}[{index}] is {entry!r}; expected [path, label, class name]"
                    )
    return parts, limited(faults)


def _names_by_label(
    parts: dict[str, list[tuple[str, int, str]]], faults: list[str]
) -> dict[int, str]:
    names: dict[int, str] = {}
    for entries in parts.values():
        for _, label, name in entries:
            if names.setdefault(label, name) != name:
                faults.append(f"label {label} is both {names[label]!r} and {name!r}")
    gaps = sorted(set(range(len(names))) - set(names))
    if gaps:
        faults.append(
            f"labels are {len(names)} numbers, but not 0 to {len(names) - 1}: no {gaps[0]}"
        )
    faults[:] = list(dict.fromkeys(faults))
    return dict(sorted(names.items()))


def _guess_root(path: Path, entries: list[tuple[str, int, str]]) -> Path | None:
    if not entries:
        return path.parent
    for folder in _IMAGE_FOLDERS:
        root = path.parent / folder
        if any(local_path(file, root).is_file() for file, _, _ in entries[:100]):
            return root
    return None
