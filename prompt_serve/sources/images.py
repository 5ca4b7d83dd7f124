"""Shards of image files, and of tar archives such as WebDataset's."""

import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

from prompt_serve.errors import ImageInvalid, counted
from prompt_serve.image_folders import image_suffixes, is_hidden
from prompt_serve.images.image_source import MAX_IMAGE_BYTES, too_many_bytes
from prompt_serve.sources.files import open_binary
from prompt_serve.sources.shard import Item, digest

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_MAX_HEADER_BYTES = 2**20  # of long names and of pax headers, which are read whole
_HEADERS = b"xgXLK"  # types of members that hold such a header
_SPARSE = b"S"
# What ``tarfile`` raises for damaged archives, beside its own errors.
_DAMAGE = (EOFError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError)


@dataclass(frozen=True)
class FileShard:
    """Some image files or URLs."""

    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{counted(len(self.paths), 'file')} from {self.paths[0]} {digest(*self.paths)}"

    @property
    def size(self) -> int:
        return len(self.paths)

    def items(self) -> Iterator[Item]:
        return (Item(path, None) for path in self.paths)


@dataclass(frozen=True)
class TarShard:
    """Images of a tar archive, read in one pass; members with other suffixes are ignored."""

    path: str

    @property
    def name(self) -> str:
        return self.path

    @property
    def size(self) -> None:
        return None

    def items(self) -> Iterator[Item]:
        for name, data in tar_members(self.path, image_suffixes()):
            yield Item(f"{self.path}/{name}" if name else self.path, data)


def tar_members(path: str, suffixes: Collection[str]) -> Iterator[tuple[str, bytes | ImageInvalid]]:
    """Yield the names and contents of an archive's files, read in one pass.

    Hidden files are left out. The name is empty where the archive itself is damaged; nothing can be
    read after that.

    Args:
        path: archive, or its URL.
        suffixes: of the files to read, in lower case.
    """
    try:
        with (
            open_binary(path) as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_BoundedHeader) as archive,
        ):
            while (member := archive.next()) is not None:
                # An archive may have any number of them.
                archive.members.clear()  # type: ignore[attr-defined]  # it is there
                name = PurePosixPath(member.name)
                if (
                    member.isfile()
                    and name.suffix.lower() in suffixes
                    and not any(map(is_hidden, name.parts))
                ):
                    yield member.name, _read(archive, member)
    except (tarfile.TarError, *_DAMAGE) as error:
        reason = str(error) or type(error).__name__
        yield "", ImageInvalid(f"{path} is damaged or cut short: {reason}.")


class _BoundedHeader(tarfile.TarInfo):
    """Header of a member that is read in bounded memory, and whose damage is an error.

    ``tarfile`` takes a damaged header behind the first one for the end of the archive.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError(str(error)) from error
            raise  # zeros, or nothing: the end
        if header.type in _HEADERS and header.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a name or header has {header.size:,} bytes")
        if header.type == _SPARSE:
            raise tarfile.ReadError(f"{header.name} is a sparse file, which is not read")
        return header

    def _proc_gnusparse_10(self, *_: object) -> None:
        """Refuse the third form of sparse files, in which ``tarfile`` may read without end."""
        raise tarfile.ReadError("it has a sparse file, which is not read")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | ImageInvalid:
    if member.size > MAX_IMAGE_BYTES:
        return too_many_bytes(member.name, member.size)
    if member.issparse():
        return ImageInvalid(f"{member.name} is a sparse file, which is not read.")
    file = archive.extractfile(member)
    return b"" if file is None else file.read()
