"""Shards of image files, and of tar archives such as WebDataset's."""

import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from prompt_serve.errors import ImageInvalid, counted
from prompt_serve.image_folders import image_suffixes, is_hidden
from prompt_serve.sources.files import open_binary
from prompt_serve.sources.shard import Item, digest

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_MAX_MEMBER_BYTES = 2**30


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
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if (
                    member.isfile()
                    and name.suffix.lower() in suffixes
                    and not any(map(is_hidden, name.parts))
                ):
                    yield member.name, _read(archive, member)
    except (tarfile.TarError, EOFError) as error:
        yield "", ImageInvalid(f"{path} is damaged or cut short: {error}.")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | ImageInvalid:
    if member.size > _MAX_MEMBER_BYTES:
        return ImageInvalid(f"{member.name} has {member.size:,} bytes, which is no image.")
    file = archive.extractfile(member)
    return b"" if file is None else file.read()
