"""Read zips of prompt files from untrusted callers, and write zips as a stream.

Nothing is unpacked to disk: entries are read one by one into memory. The sizes in the zip's
directory are checked against limits before anything is decompressed, and again while it is: a
directory may lie, and an entry may be read many times.
"""

import io
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO

from prompt_serve.errors import ArchiveInvalid, RequestTooLarge
from prompt_serve.prompts.prompt_file import MAX_FILE_BYTES

SUFFIX = ".safetensors"
MAX_ENTRIES = 20_000
MAX_UNPACKED_BYTES = 512 * 2**20

_ENTRY_SIGNATURE = b"PK\x01\x02"  # of an entry of the directory
_CHUNK_BYTES = 2**20
_ALLOWED_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


class Archive:
    """Files of a zip by their paths; every entry is checked when the zip is opened.

    Args:
        file: the zip.
        max_bytes: limit of all files together, unpacked, and of all that is read; None:
            ``MAX_UNPACKED_BYTES``.

    Raises:
        ArchiveInvalid: not a zip; encrypted; or with paths out of the archive, links or duplicates.
        RequestTooLarge: too many files, or files that are too large.
    """

    def __init__(self, file: IO[bytes], *, max_bytes: int | None = None) -> None:
        max_bytes = MAX_UNPACKED_BYTES if max_bytes is None else max_bytes
        _check_entries(file)
        try:
            self._zip = zipfile.ZipFile(file)
            entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        # A damaged directory makes zipfile raise all kinds of exceptions.
        except Exception as error:
            raise ArchiveInvalid(f"Not a zip file: {error}. Send a zip of prompt files.") from error
        self._max_bytes = max_bytes
        self._read_bytes = 0
        _check_sizes(entries, max_bytes)
        for entry in self._zip.infolist():
            _check_entry(entry)
        self.paths = [entry.filename for entry in entries]
        _check_duplicates(self.paths, "The zip contains {} more than once.")

    def read(self, path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Return the bytes of a file, which may have ``max_bytes``.

        Raises:
            ArchiveInvalid: the file is damaged, or there is no such file.
            RequestTooLarge: the file is too large; or with it, more was read than the limit of all
                files, each reading counted.
        """
        try:
            entry = self._zip.getinfo(path)
        except KeyError as error:
            raise ArchiveInvalid(f"The zip has no {path}.") from error
        if entry.file_size > max_bytes:
            raise RequestTooLarge(
                f"{path[:200]!r} in the zip has {entry.file_size:,} bytes; the limit is "
                f"{max_bytes:,}. Nothing was changed.",
                limit=max_bytes,
                count=entry.file_size,
            )
        self._read_bytes += entry.file_size
        if self._read_bytes > self._max_bytes:
            raise RequestTooLarge(
                f"The zip names files of more than {self._max_bytes:,} bytes, counting a file each "
                f"time it is named. Nothing was changed. Send several smaller zips.",
                limit=self._max_bytes,
                count=self._read_bytes,
            )
        try:
            with self._zip.open(entry) as file:
                # One byte more, because the CRC is checked at the end of the file. In pieces, so
                # that the other threads have their turn.
                left, pieces = entry.file_size + 1, list[bytes]()
                while piece := file.read(min(left, _CHUNK_BYTES)):
                    pieces.append(piece)
                    left -= len(piece)
                data = b"".join(pieces)
        # Damaged bytes make zipfile raise all kinds of exceptions.
        except Exception as error:
            raise ArchiveInvalid(f"{path[:200]!r} in the zip is damaged: {error}.") from error
        if len(data) != entry.file_size:
            raise ArchiveInvalid(
                f"{path[:200]!r} in the zip is damaged: it has {len(data):,} bytes, but the "
                f"directory of the zip says {entry.file_size:,}."
            )
        return data


def prompt_files(archive: Archive) -> dict[str, str]:
    """Map task names to paths in the archive, for a zip of a folder of prompt files.

    Files that operating systems add to zips are ignored.

    Raises:
        ArchiveInvalid: two files have the same name, or a file is not a ``.safetensors``.
    """
    files = [path for path in archive.paths if not _is_system_file(path)]
    others = [path for path in files if not path.endswith(SUFFIX)]
    if others or not files:
        found = f"contains {others[0][:200]!r}" if others else "is empty"
        raise ArchiveInvalid(f"The zip {found}; expected only prompt files (NAME{SUFFIX}).")
    names = [PurePosixPath(path).name.removesuffix(SUFFIX) for path in files]
    _check_duplicates(names, "Two files in the zip are named {}.")
    return dict(zip(names, files, strict=True))


def write_zip(files: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """Yield a zip of ``files`` (path, bytes) in chunks; the whole zip is never in memory.

    The files are not compressed, since learned numbers hardly compress.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w") as archive:
        for path, data in files:
            archive.writestr(
                zipfile.ZipInfo(path), data
            )  # dated 1980: the same files give the same bytes
            yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """Write-only stream that collects the bytes written since the last ``take``."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        chunk = bytes(data)  # type: ignore[call-overload]  # any buffer
        self._chunks.append(chunk)
        return len(chunk)

    def take(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data


def _check_entries(file: IO[bytes]) -> None:
    """Raise RequestTooLarge for a directory of too many entries, before zipfile reads it: that
    takes a thousand times as long as counting them."""
    count, before = 0, b""
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        count += (before + chunk).count(_ENTRY_SIGNATURE)
        before = chunk[1 - len(_ENTRY_SIGNATURE) :]
        if count > 2 * MAX_ENTRIES:  # folders have entries, too
            raise RequestTooLarge(
                f"The zip contains more than {2 * MAX_ENTRIES:,} entries; the limit is "
                f"{MAX_ENTRIES:,} files. Send several smaller zips.",
                limit=MAX_ENTRIES,
                count=count,
            )


def _check_sizes(entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or total > max_bytes:
        raise RequestTooLarge(
            f"The zip contains {len(entries):,} files of {total:,} bytes; the limit is "
            f"{MAX_ENTRIES:,} files of {max_bytes:,} bytes. Send several smaller zips.",
            limit=max_bytes,
            count=total,
        )


def _check_entry(entry: zipfile.ZipInfo) -> None:
    path, mode = entry.filename, entry.external_attr >> 16
    fault = None
    # zipfile cuts filename at NUL and turns the system's separators into slashes.
    given = entry.orig_filename
    if path.startswith("/") or "\\" in given or "\0" in given or ":" in path:
        fault = "has a path that is not relative"
    elif ".." in PurePosixPath(path).parts:
        fault = "has a path that leads out of the zip"
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "is a link or a device"
    elif entry.flag_bits & 0x1:
        fault = "is encrypted"
    elif entry.compress_type not in _ALLOWED_METHODS:
        fault = "uses an unsupported compression method"
    if fault is not None:
        raise ArchiveInvalid(
            f"{given[:200]!r} in the zip {fault}. Nothing was changed. Zip the plain files again."
        )


def _check_duplicates(names: list[str], message: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArchiveInvalid(message.format(repr(name[:200])) + " Nothing was changed.")
        seen.add(name)


def _is_system_file(path: str) -> bool:
    """Return True for files that operating systems add to zips."""
    parts = PurePosixPath(path).parts
    return parts[0] == "__MACOSX" or parts[-1].startswith(".")
