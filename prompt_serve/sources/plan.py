"""Turn what a user names into shards: folders, patterns, lists, archives, tables and arrays."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from prompt_serve.errors import DatasetInvalid
from prompt_serve.image_folders import Ignored, image_suffixes
from prompt_serve.sources.arrays import NPY_SUFFIX, array_shards
from prompt_serve.sources.files import is_folder, list_files, matching, open_binary
from prompt_serve.sources.images import TAR_SUFFIXES, FileShard, TarShard
from prompt_serve.sources.lists import listed_paths
from prompt_serve.sources.shard import Shard, holds_embeddings
from prompt_serve.sources.tables import TABLE_SUFFIXES, table_shards

LIST_SUFFIX = ".txt"
IMAGES_PER_SHARD = 4096
EMBEDDINGS_PER_SHARD = 262_144


def shards_of(
    sources: Iterable[str],
    ignored: Ignored,
    *,
    listed: Iterable[str] = (),
    rows_per_shard: int | None = None,
    column: str | None = None,
) -> list[Shard]:
    """Return the shards of some sources, in order; the same sources give the same shards.

    Args:
        sources: paths, patterns and URLs.
        ignored: what is left out in folders is added to it.
        listed: image files and URLs, which are not looked for yet.
        rows_per_shard: images or embeddings per shard; archives are never split, tables at their
            row groups.
        column: column of tables to read; None: found by name and type.

    Raises:
        DatasetInvalid: a source does not exist, cannot be read or has no images; or some have
            images and others embeddings.
    """
    sources = list(sources)
    shards: list[Shard] = []
    file_shards: list[Shard] = []
    images: dict[str, None] = dict.fromkeys(listed)
    for path in (found for source in sources for found in matching(source)):
        for file in _files_of(path, ignored):
            if (own := _container_shards(file, rows_per_shard, column)) is not None:
                shards += own
            else:
                images[file] = None
    paths = iter(images)
    while some := tuple(islice(paths, rows_per_shard or IMAGES_PER_SHARD)):
        file_shards.append(FileShard(some))
    shards = [*file_shards, *shards]
    if not shards:
        raise DatasetInvalid(
            f"No images in {', '.join(sources)}. Searched for files with the suffixes "
            f"{', '.join(sorted(image_suffixes()))}, and for archives and tables.",
            [],
        )
    if len({holds_embeddings(shard) for shard in shards}) > 1:
        raise DatasetInvalid(
            f"Some of {', '.join(sources)} are images and others embeddings; score them apart.", []
        )
    return shards


def _files_of(path: str, ignored: Ignored) -> Iterator[str]:
    """Yield the files of a folder or list, or the file itself."""
    if is_folder(path):
        yield from _files_in_folder(path, ignored)
    elif path.lower().endswith(LIST_SUFFIX):
        with open_binary(path) as file:
            yield from listed_paths(file.read(), Path(path))
    else:
        yield path


def _files_in_folder(folder: str, ignored: Ignored) -> Sequence[str]:
    """Return the images of a folder; in one without any, its archives, tables and arrays."""
    containers = frozenset((".tar", ".tgz", ".gz", *TABLE_SUFFIXES, NPY_SUFFIX))
    left_out = Ignored()
    images = list_files(folder, image_suffixes(), left_out)
    if images or not containers & left_out.files.keys():
        ignored.add(left_out)
        return images
    return [
        file
        for file in list_files(folder, containers, ignored)
        if not file.endswith(".gz") or file.endswith(TAR_SUFFIXES)
    ]


def _container_shards(
    path: str, rows_per_shard: int | None, column: str | None
) -> Sequence[Shard] | None:
    """Return the shards of a file that holds many images or embeddings; None for an image."""
    name = path.lower()
    if name.endswith(TAR_SUFFIXES):
        return [TarShard(path)]
    if name.endswith(NPY_SUFFIX):
        return array_shards(path, rows_per_shard=rows_per_shard or EMBEDDINGS_PER_SHARD)
    if name.endswith(TABLE_SUFFIXES):
        return table_shards(path, rows_per_shard=rows_per_shard or IMAGES_PER_SHARD, column=column)
    return None
