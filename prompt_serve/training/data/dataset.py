"""Image files with their classes and parts: train, validation and test.

Readers (``folders``, ``manifests``) return a ``RawDataset`` with the images of a source and every
fault they find; ``loading`` turns it into a ``Split``, or into one error that lists all faults.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prompt_serve.text_files import utf8_name

FAULTS_PER_KIND = 50  # listed in an error; a dataset may have 10,000 broken images
# Names in use for the parts of a dataset.
PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_PART_NAME = re.compile(r"([a-z]+?)(?:[ _-]?(?:set|data|images|split))?")


def part_of(name: str) -> str | None:
    """Return the part that a folder is named for, as in Train, test_set or valid; else None."""
    match = _PART_NAME.fullmatch(name.strip().lower())
    return PARTS.get(match[1]) if match else None


@dataclass(frozen=True)
class LabeledImage:
    """One image file and the index of its class."""

    path: Path
    label: int
    source: str = ""  # name of the image for people, if the file is a copy of it

    @property
    def name(self) -> str:
        """Name of the image for people."""
        return self.source or str(self.path)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of a dataset, in an order that is the same in every run."""

    class_names: tuple[str, ...]  # in the order of the labels
    items: tuple[LabeledImage, ...]

    def __len__(self) -> int:
        return len(self.items)

    def by_label(self) -> dict[int, list[LabeledImage]]:
        """Return the items of each label; labels in order of first appearance, as in CoOp."""
        groups: dict[int, list[LabeledImage]] = {}
        for item in self.items:
            groups.setdefault(item.label, []).append(item)
        return groups

    def with_items(self, items: Iterable[LabeledImage]) -> "ImageSet":
        return replace(self, items=tuple(items))


@dataclass(frozen=True, kw_only=True)
class Split:
    """Parts of a dataset; ``val`` and ``test`` are None where the source has none."""

    train: ImageSet
    val: ImageSet | None = None
    test: ImageSet | None = None
    notes: tuple[str, ...] = ()  # what its maker should know, such as ignored files

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def parts(self) -> dict[str, ImageSet]:
        """Existing parts, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(kw_only=True)
class RawDataset:
    """Images that a reader found, their faults, and notes on what it left out."""

    class_names: tuple[str, ...] = ()
    items: dict[str, list[LabeledImage]] = field(default_factory=dict)  # by part
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def split(self) -> Split:
        """Return the images as a split; a part without images is None."""
        names = tuple(map(utf8_name, self.class_names))
        parts = {
            part: ImageSet(class_names=names, items=tuple(self.items.get(part, ())))
            for part in ("train", "val", "test")
        }
        return Split(
            train=parts["train"],
            val=parts["val"] or None,
            test=parts["test"] or None,
            notes=tuple(self.notes),
        )


def limited(faults: Sequence[str], limit: int = FAULTS_PER_KIND) -> list[str]:
    """Return the first faults of one kind, and the number of the others."""
    if len(faults) <= limit:
        return list(faults)
    return [*faults[:limit], f"... and {len(faults) - limit:,} more like these"]
