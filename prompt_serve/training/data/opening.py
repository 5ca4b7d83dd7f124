"""Open what a user names as a dataset: class folders, tables, archives, here or in object stores.

All become one of two things: a ``Table`` with a row per labeled image, or an ``ImageTree``, whose
folders name the classes. Names in an object store or archive become a tree of empty files, so that
one set of rules reads all trees; only the images that are taken are then copied.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from prompt_serve.errors import DatasetInvalid, counted
from prompt_serve.image_folders import (
    Ignored,
    contents,
    find_images,
    image_suffixes,
    is_hidden,
)
from prompt_serve.sources.files import (
    is_folder,
    is_url,
    list_files,
    matching,
    store_errors,
    stored_files,
)
from prompt_serve.sources.images import TAR_SUFFIXES
from prompt_serve.sources.tables import TABLE_SUFFIXES
from prompt_serve.training.data.archives import Archive, listed_classes, read_archive
from prompt_serve.training.data.dataset import PARTS, part_of
from prompt_serve.training.data.folders import read_folder
from prompt_serve.training.data.image_store import ImageStore
from prompt_serve.training.data.tables import (
    USUAL_COLUMNS,
    ColumnNames,
    Table,
    is_table,
    read_table_rows,
)

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_WILDCARDS = re.compile(r"[*?\[{]")
_WORDS = re.compile(r"[^a-z]+")


@dataclass(frozen=True)
class ImageTree:
    """Folders of images; those of an object store or archive have the names, and no content."""

    root: Path
    shown: str = ""  # name of the source; empty where the root is the source itself
    sources: Mapping[Path, str] = field(default_factory=dict)
    copies: Callable[[Iterable[str]], Mapping[str, Path]] = lambda sources: {}

    def located(self, paths: Iterable[Path]) -> dict[Path, tuple[Path, str]]:
        """Return the file of each image of the tree, and the name of its source if it is a copy."""
        if not self.shown:
            return {path: (path, "") for path in paths}
        sources = {path: self.sources[path] for path in paths}
        copies = self.copies(sources.values())
        return {p: (copies[source], source) for p, source in sources.items() if source in copies}

    def named(self, lines: Iterable[str]) -> list[str]:
        """Name the source in messages, in place of the folder that stands for it."""
        return [line.replace(str(self.root), self.shown) if self.shown else line for line in lines]


@contextmanager
def opened(source: str, columns: ColumnNames, store: ImageStore) -> Iterator[ImageTree | Table]:
    """Open a dataset.

    Args:
        source: folder, table or archive; or a pattern of tables or archives; or the URL of these.
        columns: names of columns in tables.
        store: keeps copies of images that are not files of this machine.

    Raises:
        DatasetInvalid: there is no such source, or it cannot be read.
    """
    with ExitStack() as stack:
        try:
            with store_errors(source):
                found = _open(source.removeprefix("file://"), columns, store, stack)
        except FileNotFoundError as error:
            raise DatasetInvalid(f"There is no folder or file {source}.", []) from error
        yield found
        store.trim()


def _open(
    source: str, columns: ColumnNames, store: ImageStore, stack: ExitStack
) -> ImageTree | Table:
    if not is_url(source) and not _WILDCARDS.search(source) and not os.path.exists(source):  # noqa: PTH110
        raise FileNotFoundError(source)
    paths = matching(source)
    folders = [path for path in paths if is_folder(path)]
    if folders and len(paths) > 1:
        raise DatasetInvalid(
            f"{source} matches {counted(len(paths), 'path')}, {counted(len(folders), 'folder')} "
            f"among them; name one folder, or tables and archives.",
            [],
        )
    if folders:
        return _open_folder(paths[0].rstrip("/"), columns, store, stack)
    return _open_files(paths, "", columns, store, stack)


def _open_folder(
    folder: str, columns: ColumnNames, store: ImageStore, stack: ExitStack
) -> ImageTree | Table:
    if is_url(folder):
        files = stored_files(folder)
        versions = {file.url: file.version for file in files}
        tree = _tree(
            {file.name: file.url for file in files},
            folder,
            lambda urls: store.fetch(urls, versions),
            stack,
        )
    else:
        tree = ImageTree(Path(folder))
    if (table := _metadata(tree, columns, store)) is not None:
        return table
    if not _has_images(tree.root):
        packed = frozenset((".tar", ".tgz", ".gz", ".bz2", ".xz", *TABLE_SUFFIXES))
        names = [
            str(tree.sources.get(Path(path), path))
            for path in list_files(str(tree.root), packed, Ignored())
            if path.lower().endswith((*TAR_SUFFIXES, *TABLE_SUFFIXES))
        ]
        if names:
            return _open_files(names, folder, columns, store, stack)
    if columns != USUAL_COLUMNS:
        raise DatasetInvalid(
            f"{folder} has neither a table nor an archive, so there are no columns to name; its "
            f"folders are the labels.",
            [],
        )
    return tree


def _tree(
    sources: Mapping[str, str],
    shown: str,
    copies: Callable[[Iterable[str]], Mapping[str, Path]],
    stack: ExitStack,
) -> ImageTree:
    """Make a tree of empty files.

    Args:
        sources: of the files, by their names below the root.
        shown: name of the root.
        copies: makes copies of sources.
        stack: removes the tree.
    """
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prompt-serve-")))
    placed: dict[Path, str] = {}
    folders = {root}
    for name, source in sources.items():
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] == "/" or "\0" in name:
            continue
        path = root.joinpath(*parts)
        try:
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            path.touch()
        except OSError:  # a name that is also a folder's, or too long for a file
            continue
        placed[path] = source
    return ImageTree(root, shown, placed, copies)


def _has_images(root: Path) -> bool:
    suffixes = image_suffixes()
    for _, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if any(Path(name).suffix.lower() in suffixes and not is_hidden(name) for name in names):
            return True
    return False


def _metadata(tree: ImageTree, columns: ColumnNames, store: ImageStore) -> Table | None:
    """Return the rows of the metadata files of Hugging Face's imagefolder, if there are any.

    They are in the folder or in those of its parts. Class folders win over a file that has no
    labels.
    """
    _, folders = contents(tree.root, Ignored())
    places: dict[str | None, Path] = {None: tree.root}
    places |= {part: path for path in folders if (part := part_of(path.name))}
    files = {
        part: next((place / name for name in METADATA_FILES if (place / name).is_file()), None)
        for part, place in places.items()
    }
    found = Table(rows=[])
    names: list[str] = []
    for part, path in files.items():
        if path is None:
            continue
        name = tree.sources.get(path, str(path))
        table = read_table_rows(name, columns, store)
        names.append(path.relative_to(tree.root).as_posix())
        for row in table.rows:
            row.setdefault("split", part or _part_of_path(row["path"]))
        found.rows += table.rows
        found.faults += [f"{names[-1]}: {fault}" for fault in table.faults]
        found.not_utf8 = found.not_utf8 or table.not_utf8
    if not names or (not found.rows and columns.label is None and _has_classes(tree.root)):
        return None
    parts = {part_of(row["split"]) for row in found.rows}
    if len(parts) == 1 and None not in parts:
        for row in found.rows:  # the images of one part alone
            row["split"] = "train"
    given = {row.get("source") or row["file"] for row in found.rows if row.get("file")}
    images = find_images(tree.root, Ignored())
    ignored = sum(tree.sources.get(path, str(path)) not in given for path in images)
    if ignored:
        listed = " and ".join(names)
        found.notes.append(f"{counted(ignored, 'image')} without a row in {listed} ignored.")
    return found


def _part_of_path(path: str) -> str:
    first = PurePosixPath(path).parts[:1]
    return (part_of(first[0]) if first else None) or "train"


def _has_classes(root: Path) -> bool:
    names = read_folder(root).class_names
    return any(part_of(name) is None for name in names)


def _open_files(
    paths: Sequence[str], folder: str, columns: ColumnNames, store: ImageStore, stack: ExitStack
) -> ImageTree | Table:
    """Open tables and archives; names such as train-0001.tar tell the part if there are several."""
    parts = {path: _part_of_file(path.removeprefix(folder)) for path in paths}
    several = len(set(parts.values())) > 1
    if several and "train" not in parts.values():
        raise DatasetInvalid(
            f"There are {' and '.join(sorted(set(parts.values())))} files, but none of train "
            f"images; name the files of one part.",
            [],
        )
    archives: dict[str, Archive] = {}
    tables: dict[str, Table] = {}
    for path in paths:
        if path.lower().endswith(TAR_SUFFIXES):
            archives[path] = read_archive(path, columns, store)
        elif is_table(path) or len(paths) == 1:
            tables[path] = read_table_rows(path, columns, store)
        else:
            raise DatasetInvalid(
                f"{path} is one of several files and neither a table nor an archive; images need "
                f"labels: name their folder, or a table.",
                [],
            )
    if archives and not tables and not any(one.labels for one in archives.values()):
        return _archived_tree(archives, parts if several else {}, columns, stack)
    if archives:
        names = listed_classes(next(iter(archives)))
        tables |= {path: one.table(names) for path, one in archives.items()}
    found = Table(rows=[])
    for path in paths:
        table = tables[path]
        if several:
            for row in table.rows:
                row.setdefault("split", parts[path])
        place = f"{path}: " if len(paths) > 1 else ""
        found.rows += table.rows
        found.faults += [f"{place}{fault}" for fault in table.faults]
        found.not_utf8 = found.not_utf8 or table.not_utf8
    return found


def _archived_tree(
    archives: Mapping[str, Archive],
    parts: Mapping[str, str],
    columns: ColumnNames,
    stack: ExitStack,
) -> ImageTree:
    """Return the folders in archives whose images have no labels of their own."""
    sources: dict[str, str] = {}
    copies: dict[str, Path] = {}
    for path, archive in archives.items():
        before = f"{parts[path]}/" if parts else ""
        for member, copy in archive.copies.items():
            sources[before + member] = f"{path}/{member}"
            copies[f"{path}/{member}"] = copy
    first = next(iter(archives.values()))
    if not any("/" in member.removeprefix("./") for member in first.copies):
        fields = ", ".join(first.fields) or "none"
        raise DatasetInvalid(
            f"{first.path} has no labels: neither .cls files, nor {columns.label_name!r} in .json "
            f"files (their fields: {fields}; name one with --label-column), nor class folders.",
            [],
        )
    shown = first.path if len(archives) == 1 else f"{first.path}, ..."
    return _tree(sources, shown, lambda wanted: {one: copies[one] for one in wanted}, stack)


def _part_of_file(path: str) -> str:
    """Return the part that a file is named for, or the folder it lies in; else train."""
    for name in reversed(PurePosixPath(path.lower()).parts):
        words = _WORDS.split(name)
        if part := next((PARTS[word] for word in words if word in PARTS), None):
            return part
    return "train"
