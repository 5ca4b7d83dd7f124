"""Zip files of prompt files: read with suspicion, written as a stream.

Nothing is ever unpacked to a disk: entries are read one by one into memory, under limits that the
zip's directory is held to before anything is decompressed.
"""

import io
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO

from prompt_serve.errors import ArchiveInvalid, RequestTooLarge

SUFFIX = ".safetensors"
MAX_ENTRIES = 20_000
MAX_UNPACKED_BYTES = 512 * 2**20

_USUAL_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


class Archive:
    """The files of a zip by their paths; made only where every entry is a safe one.

    Args:
        file: the zip.
        max_bytes: of all files together, unpacked.

    Raises:
        ArchiveInvalid: not a zip; encrypted; or with paths out of the archive, links, duplicates.
        RequestTooLarge: too many files, or too large ones.
    """

    def __init__(self, file: IO[bytes], *, max_bytes: int = MAX_UNPACKED_BYTES) -> None:
        try:
            self._zip = zipfile.ZipFile(file)
        # zipfile raises whatever it stumbles over in a damaged directory.
        except Exception as error:
            raise ArchiveInvalid(f"Not a zip file: {error}. Send a zip of prompt files.") from error
        entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        _check_sizes(entries, max_bytes)
        for entry in self._zip.infolist():
            _check_entry(entry)
        self.paths = [entry.filename for entry in entries]
        _check_duplicates(self.paths, "The zip holds {} more than once.")

    def read(self, path: str) -> bytes:
        """The bytes of a file.

        Raises:
            ArchiveInvalid: they are damaged, or there is no such file.
        """
        try:
            return self._zip.read(path)
        except KeyError as error:
            raise ArchiveInvalid(f"The zip has no {path}.") from error
        # zipfile raises whatever it stumbles over in damaged bytes.
        except Exception as error:
            raise ArchiveInvalid(f"{path[:200]!r} in the zip is damaged: {error}.") from error


def prompt_files(archive: Archive) -> dict[str, str]:
    """Name of the task -> path in the archive, for a zip of a folder of prompt files.

    Raises:
        ArchiveInvalid: two files have one name, or a file is no ``.safetensors``.
    """
    files = [path for path in archive.paths if not _is_clutter(path)]
    strangers = [path for path in files if not path.endswith(SUFFIX)]
    if strangers or not files:
        what = f"holds {strangers[0][:200]!r}" if strangers else "is empty"
        raise ArchiveInvalid(f"The zip {what}; wanted prompt files alone (NAME{SUFFIX}).")
    names = [PurePosixPath(path).name.removesuffix(SUFFIX) for path in files]
    _check_duplicates(names, "Two files of the zip are named {}.")
    return dict(zip(names, files, strict=True))


def written(files: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """A zip of ``files`` (path, bytes) in chunks, one or more a file: it is never in memory whole.

    The files are not compressed: the numbers of prompts do not get smaller.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w") as archive:
        for path, data in files:
            archive.writestr(zipfile.ZipInfo(path), data)  # the year 1980: same files, same bytes
            yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """Where a zip is written to, to be taken from there; it cannot be read or sought."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        chunk = bytes(data)  # type: ignore[call-overload]  # whatever has a buffer
        self._chunks.append(chunk)
        return len(chunk)

    def taken(self) -> bytes:
        taken = b"".join(self._chunks)
        self._chunks.clear()
        return taken


def _check_sizes(entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    # zipfile stops reading an entry at the size that the directory declares for it.
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or total > max_bytes:
        raise RequestTooLarge(
            f"The zip holds {len(entries):,} files of {total:,} bytes; at most {MAX_ENTRIES:,} of "
            f"{max_bytes:,} bytes are taken. Send several smaller ones.",
            limit=max_bytes,
            count=total,
        )


def _check_entry(entry: zipfile.ZipInfo) -> None:
    path, mode = entry.filename, entry.external_attr >> 16
    fault = None
    # orig_filename: zipfile cuts names at NUL and turns the system's separators into slashes.
    given = entry.orig_filename
    if path.startswith("/") or "\\" in given or "\0" in given or ":" in path:
        fault = "has a path that is not relative"
    elif ".." in PurePosixPath(path).parts:
        fault = "has a path that leads out of the zip"
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "is a link or a device"
    elif entry.flag_bits & 0x1:
        fault = "is encrypted"
    elif entry.compress_type not in _USUAL_METHODS:
        fault = "is compressed in an unusual way"
    if fault is not None:
        raise ArchiveInvalid(
            f"{given[:200]!r} in the zip {fault}. Nothing was changed. Zip the plain files anew."
        )


def _check_duplicates(names: list[str], message: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArchiveInvalid(message.format(repr(name[:200])) + " Nothing was changed.")
        seen.add(name)


def _is_clutter(path: str) -> bool:
    """What systems put into zips unasked."""
    parts = PurePosixPath(path).parts
    return parts[0] == "__MACOSX" or parts[-1].startswith(".")
