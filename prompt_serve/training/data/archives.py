"""Read tar archives: samples of WebDataset with their labels, or class folders in an archive.

In WebDataset the files of a sample have one name up to the first dot: ``0001.jpg`` with
``0001.cls`` (the label) or ``0001.json`` (an object with the label).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from prompt_serve.errors import DatasetInvalid
from prompt_serve.image_folders import image_suffixes
from prompt_serve.sources.files import is_url, read_file, version_of
from prompt_serve.sources.images import tar_members
from prompt_serve.text_files import decode_text
from prompt_serve.training.data.dataset import limited
from prompt_serve.training.data.image_store import ImageStore
from prompt_serve.training.data.tables import ColumnNames, Row, Table, as_text

_LABEL_SUFFIXES = (".cls", ".json")
_MAX_LABEL_BYTES = 16 * 2**20  # of a .cls or .json file
_MAX_DIGITS = 9  # of the number of a class
CLASS_LIST = "classes.txt"  # names of the classes, one per line, in the order of their numbers


@dataclass(kw_only=True)
class Archive:
    """Images of an archive, copied, with the labels of those that have one."""

    path: str
    copies: dict[str, Path] = field(default_factory=dict)  # by member
    labels: dict[str, str] = field(default_factory=dict)  # by sample
    # In the JSON files of samples; in order, without values.
    fields: dict[str, None] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def table(self, class_names: Sequence[str]) -> Table:
        """Return a row per image, with its label.

        Args:
            class_names: of labels that are numbers; empty where they are not named.
        """
        rows: list[Row] = []
        faults = list(self.faults)
        plain = {_sample(member) for member in self.copies if _extensions(member) == 1}
        for member, copy in self.copies.items():
            label = self.labels.get(_sample(member))
            if _extensions(member) > 1 and _sample(member) in plain:
                continue  # another picture of the sample, such as 0001.mask.png
            if label is None:
                faults.append(f"{self.path}/{member}: no label (.cls or .json) is beside it")
                continue
            source = f"{self.path}/{member}"
            label = _class_name(label, class_names)
            rows.append({"path": source, "file": str(copy), "source": source, "label": label})
        return Table(rows=rows, faults=limited(faults))


def read_archive(path: str, columns: ColumnNames, store: ImageStore) -> Archive:
    """Copy the images of an archive; one whose copies are all there is not read again.

    Raises:
        DatasetInvalid: it cannot be read, or is damaged.
    """
    version = version_of(path)
    origin = path if is_url(path) else str(Path(path).absolute())
    key = columns.label_name
    index = f"{origin} labels {key}"
    archive = Archive(path=path)
    known = store.document(index, version)
    if known is not None:
        copies = {name: store.place(f"{origin}/{name}", version) for name in known["members"]}
        if all(store.holds(copy, version) for copy in copies.values()):
            return Archive(path=path, copies=copies, **known["facts"])
    for member, data in tar_members(path, image_suffixes() | {*_LABEL_SUFFIXES}):
        if not isinstance(data, bytes):
            raise DatasetInvalid(f"{path} cannot be learned from: {data}", [])
        _add(archive, member, data, store.place(f"{origin}/{member}", version), key, store)
    facts = {"labels": archive.labels, "fields": archive.fields, "faults": archive.faults}
    store.keep_document(index, version, {"members": list(archive.copies), "facts": facts})
    return archive


def _add(
    archive: Archive, member: str, data: bytes, copy: Path, key: str, store: ImageStore
) -> None:
    suffix = PurePosixPath(member).suffix.lower()
    if suffix not in _LABEL_SUFFIXES:
        if member in archive.copies:
            archive.faults.append(
                f"{archive.path}/{member}: the archive has two files of this name"
            )
        store.keep(copy, data)
        archive.copies[member] = copy
    elif len(data) > _MAX_LABEL_BYTES:
        archive.faults.append(
            f"{archive.path}/{member} has {len(data):,} bytes; a label has at most "
            f"{_MAX_LABEL_BYTES:,}"
        )
    elif suffix == ".cls":
        archive.labels.setdefault(_sample(member), decode_text(data).strip())
    else:
        label = _json_label(archive, f"{archive.path}/{member}", data, key)
        if label is not None:
            archive.labels[_sample(member)] = label


def _json_label(archive: Archive, name: str, data: bytes, key: str) -> str | None:
    try:
        found: Any = json.loads(decode_text(data))
    except (ValueError, RecursionError) as error:
        archive.faults.append(f"{name} is not JSON: {error}")
        return None
    if not isinstance(found, dict):
        return None
    fields = {str(name).strip().lower(): value for name, value in found.items()}
    archive.fields |= dict.fromkeys(fields)
    return None if fields.get(key) is None else as_text(fields[key])


def _sample(member: str) -> str:
    """Return the name of a sample: that of its files up to the first dot."""
    path = PurePosixPath(member)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _extensions(member: str) -> int:
    return PurePosixPath(member).name.count(".")


def _class_name(label: str, class_names: Sequence[str]) -> str:
    number = int(label) if label.isdecimal() and len(label) <= _MAX_DIGITS else -1
    return class_names[number] if 0 <= number < len(class_names) else label


def listed_classes(archive: str) -> list[str]:
    """Return the names in ``classes.txt`` beside an archive; none if there is no such file."""
    folder = archive.rpartition("/")[0] if is_url(archive) else str(Path(archive).parent)
    try:
        text = decode_text(read_file(f"{folder}/{CLASS_LIST}"))
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.split("\n") if line.strip()]
