"""Export a whole registry as a zip, written as a stream, and read such a zip.

    versions/<sha256>.safetensors    the prompt files
    registry.json                    names, versions, tags, pins (``schemas.ExportedRegistry``)

``registry.json`` comes last, so a truncated file is not mistaken for a complete one. The history is
not exported because it belongs to its registry, class features because they can be computed again.
"""

from collections.abc import Iterator

from pydantic import ValidationError

from prompt_serve import __version__
from prompt_serve.errors import ArchiveInvalid, RequestTooLarge
from prompt_serve.prompts.prompt_file import version_of
from prompt_serve.schemas import ExportedRegistry, ExportedTask
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.storage.tables import StoredTask
from prompt_serve.service.tasks.zip_files import MAX_ENTRIES, SUFFIX, Archive, write_zip

_INDEX = "registry.json"
_MAX_INDEX_BYTES = 16 * 2**20
_MAX_INDEX_VALUES = 10 * MAX_ENTRIES
_PAGE = 500


def export_registry(registry: Registry) -> Iterator[bytes]:
    """Yield the zip of a registry in chunks."""
    return write_zip(_files(registry))


def read_index(archive: Archive) -> ExportedRegistry:
    """Read ``registry.json``.

    Raises:
        ArchiveInvalid: it is missing, or has another format.
        RequestTooLarge: it is larger than the index of any registry that fits into a zip.
    """
    if _INDEX not in archive.paths:
        raise ArchiveInvalid(
            f"The zip has no {_INDEX}: it is not an export of a registry, or it is truncated. "
            f"To upload a folder of prompt files: prompt-serve tasks upload FOLDER"
        )
    index = archive.read(_INDEX, _MAX_INDEX_BYTES)
    values = sum(index.count(mark) for mark in (b",", b"[", b"{"))
    if values > _MAX_INDEX_VALUES:
        raise RequestTooLarge(
            f"{_INDEX} in the zip has about {values:,} values; the limit is "
            f"{_MAX_INDEX_VALUES:,}. Export and import fewer tasks at once.",
            limit=_MAX_INDEX_VALUES,
            count=values,
        )
    try:
        return ExportedRegistry.model_validate_json(index)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ArchiveInvalid(
            f"{_INDEX} in the zip does not have format 1: {place}: {first['msg']}."
        ) from error


def read_version(archive: Archive, version: str) -> bytes:
    """Read the prompt file of a version.

    Raises:
        ArchiveInvalid: it is missing, or its sha256 is not the version.
    """
    data = archive.read(_path(version))
    if version_of(data) != version:
        raise ArchiveInvalid(f"{_path(version)} in the zip was changed: its sha256 differs.")
    return data


def _files(registry: Registry) -> Iterator[tuple[str, bytes]]:
    tasks: list[ExportedTask] = []
    written: set[str] = set()
    for stored in _all_tasks(registry):
        found = _file_of(registry, stored)
        if found is None:
            continue
        version, data = found
        if version not in written:
            yield _path(version), data
        written.add(version)
        tasks.append(
            ExportedTask(
                name=stored.name,
                version=version,
                updated=stored.updated,
                pinned=stored.pinned,
                tags=list(stored.tags),
            )
        )
    index = ExportedRegistry(tool_version=__version__, tasks=tasks)
    yield _INDEX, index.model_dump_json(indent=1).encode()


def _all_tasks(registry: Registry) -> Iterator[StoredTask]:
    after = ""
    while True:
        page, _ = registry.tasks(after, _PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].name


def _file_of(registry: Registry, stored: StoredTask) -> tuple[str, bytes] | None:
    """Return the version of a task and its file: the newest if the listed one has been removed
    since; None if the task has been removed as well."""
    prompt = registry.prompt(stored.version, stored.fingerprint)
    while prompt is None:
        newer = registry.task(stored.name)
        if newer is None:
            return None
        stored, prompt = newer, registry.prompt(newer.version, newer.fingerprint)
    return stored.version, prompt.data


def _path(version: str) -> str:
    return f"versions/{version}{SUFFIX}"
