"""Walk folders of images: one rule for training, evaluation and the commands of the client.

Hidden files and folders are left out, and with them what file systems and tools leave behind
(``@eaDir``, ``#recycle``, ``__MACOSX``, ``Thumbs.db``). A folder is visited once, however many
links lead to it. What is left out is counted by reason, so that a command can tell it in one line.
"""

import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from prompt_serve.preprocess import HEIF_WAY_OUT, reads_heif

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif"),
        *(".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
# Beside names that start with a dot; in lower case.
_SYSTEM_NAMES = frozenset(
    (
        *("@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
        *("lost+found", "__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        "icon\r",
    )
)
_SUFFIX = re.compile(r"\.\w{1,12}", re.ASCII)
_REASONS_SHOWN = 8

FolderId: TypeAlias = tuple[int, int]  # device and inode


@dataclass
class Ignored:
    """Numbers of files and folders that were left out, by reason; a reason may be a suffix."""

    files: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.files or self.folders)

    def add(self, other: "Ignored") -> None:
        self.files += other.files
        self.folders += other.folders

    def add_files(self, reason: str, count: int) -> None:
        self.files += Counter({reason: count})  # keeps no zeros

    def add_folders(self, reason: str, count: int) -> None:
        self.folders += Counter({reason: count})

    def __str__(self) -> str:
        """Return one line, such as "4 files ignored: 3 .txt, 1 hidden"."""
        counts = [
            f"{reasons.total():,} {kind}{'s' if reasons.total() > 1 else ''} ignored: "
            f"{_listed(reasons)}"
            for kind, reasons in (("file", self.files), ("folder", self.folders))
            if reasons
        ]
        way_out = f" ({HEIF_WAY_OUT})" if HEIF_SUFFIXES & set(self.files) else ""
        return "; ".join(counts) + way_out


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of images that this machine can decode, in lower case."""
    return IMAGE_SUFFIXES | HEIF_SUFFIXES if reads_heif() else IMAGE_SUFFIXES


def find_images(
    folder: Path,
    ignored: Ignored,
    *,
    suffixes: Collection[str] | None = None,
    visited: set[FolderId] | None = None,
) -> list[Path]:
    """Return the images in a folder and all folders below, in the order of the names.

    Args:
        folder: visited in any case.
        ignored: what is left out is added to it.
        suffixes: of images, in lower case; by default those that this machine can decode.
        visited: folders that links do not lead to again; those visited now are added.
    """
    visited = set() if visited is None else visited
    visited |= {folder_id(above) for above in folder.resolve().parents}
    found: dict[Path, list[Path]] = {}
    # Links come after all folders, so that a folder is found in its own place.
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        here = (folders or links).popleft()
        try:
            identity = folder_id(here)
        except OSError:
            ignored.folders["unreadable"] += 1
            continue
        if identity in visited and here != folder:
            ignored.folders["visited before"] += 1
            continue
        visited.add(identity)
        found[here], inside = contents(here, ignored, suffixes=suffixes)
        for subfolder in inside:
            (links if subfolder.is_symlink() else folders).append(subfolder)
    return [path for here in sorted(found, key=path_key) for path in found[here]]


def contents(
    folder: Path, ignored: Ignored, *, suffixes: Collection[str] | None = None
) -> tuple[list[Path], list[Path]]:
    """Return the images and the folders that lie directly in a folder, sorted by name.

    Args:
        folder: one that cannot be read counts as ignored.
        ignored: what is left out is added to it.
        suffixes: of images, in lower case; by default those that this machine can decode.
    """
    suffixes = image_suffixes() if suffixes is None else suffixes
    images, folders = [], []
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: (nfc(entry.name), entry.name))
    except OSError:
        ignored.folders["unreadable"] += 1
        return [], []
    for entry in listed:
        is_folder, is_file = _kind(entry)
        if is_hidden(entry.name):
            (ignored.folders if is_folder else ignored.files)["hidden"] += 1
        elif is_folder:
            folders.append(folder / entry.name)
        elif not is_file:
            ignored.files["broken link" if entry.is_symlink() else "not a file"] += 1
        elif (suffix := Path(entry.name).suffix.lower()) in suffixes:
            images.append(folder / entry.name)
        else:
            ignored.files[_shown(suffix)] += 1
    return images, folders


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Return if an entry is a folder and if it is a file, without a system call for most."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:  # such as a link to itself
        return False, False


def _shown(suffix: str) -> str:
    """Return a suffix as a reason; the end of "Mr. X by the sea" is none."""
    if not suffix:
        return "without suffix"
    return suffix if _SUFFIX.fullmatch(suffix) else "with another suffix"


def is_hidden(name: str) -> bool:
    """Return True for a file or folder that is hidden or the system's own."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def folder_id(folder: Path) -> FolderId:
    """Return what tells a folder from all others, whatever path leads to it."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def nfc(name: str) -> str:
    """Return a name in one spelling: macOS may store ``é`` as a letter and an accent."""
    return unicodedata.normalize("NFC", name)


def path_key(path: Path) -> tuple[str, ...]:
    """Return a sorting key that is the same for both spellings of a path (see ``nfc``)."""
    return tuple(map(nfc, path.parts))


def _listed(reasons: Counter[str]) -> str:
    ordered = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    shown = [f"{count:,} {reason}" for reason, count in ordered[:_REASONS_SHOWN]]
    if rest := sum(count for _, count in ordered[_REASONS_SHOWN:]):
        shown.append(f"{rest:,} of other kinds")
    return ", ".join(shown)
