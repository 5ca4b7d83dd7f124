"""A whole registry as a zip: written as a stream, and read back elsewhere.

    versions/<sha256>.safetensors    the prompt files
    registry.json                    names, versions, tags, pins (``schemas.ExportedRegistry``)

``registry.json`` comes last, so a file that was cut short is not mistaken for a whole one. History
and class features stay behind: the one belongs to the place, the others can be computed again.
"""

from collections.abc import Iterator

from pydantic import ValidationError

from prompt_serve import __version__
from prompt_serve.errors import ArchiveInvalid
from prompt_serve.prompts.prompt_file import version_of
from prompt_serve.schemas import ExportedRegistry, ExportedTask
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.storage.tables import StoredTask
from prompt_serve.service.tasks.zip_files import SUFFIX, Archive, written

INDEX = "registry.json"
_PAGE = 500


def exported(registry: Registry) -> Iterator[bytes]:
    """The zip of a registry, in chunks."""
    return written(_files(registry))


def read_index(archive: Archive) -> ExportedRegistry:
    """What ``registry.json`` says.

    Raises:
        ArchiveInvalid: it is missing, or of another format.
    """
    if INDEX not in archive.paths:
        raise ArchiveInvalid(
            f"The zip has no {INDEX}, so it is not the export of a registry, or it was cut short. "
            f"A folder of prompt files is uploaded with prompt-serve tasks upload FOLDER."
        )
    try:
        return ExportedRegistry.model_validate_json(archive.read(INDEX))
    except ValidationError as error:
        raise ArchiveInvalid(f"{INDEX} in the zip is not of format 1: {error}") from error


def read_version(archive: Archive, version: str) -> bytes:
    """The prompt file of a version.

    Raises:
        ArchiveInvalid: it is missing, or its bytes are not those of the version.
    """
    data = archive.read(_path(version))
    if version_of(data) != version:
        raise ArchiveInvalid(f"{_path(version)} in the zip was changed: its sha256 is another.")
    return data


def _files(registry: Registry) -> Iterator[tuple[str, bytes]]:
    tasks: list[ExportedTask] = []
    done: set[str] = set()
    for stored in _all_tasks(registry):
        found = _file_of(registry, stored)
        if found is None:
            continue
        version, data = found
        if version not in done:
            yield _path(version), data
        done.add(version)
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
    yield INDEX, index.model_dump_json(indent=1).encode()


def _all_tasks(registry: Registry) -> Iterator[StoredTask]:
    after = ""
    while True:
        page, _ = registry.tasks(after, _PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].name


def _file_of(registry: Registry, stored: StoredTask) -> tuple[str, bytes] | None:
    """The version of a task and its file: the newest, where the listed one is gone by now; None
    where the task is gone as well."""
    prompt = registry.prompt(stored.version, stored.fingerprint)
    while prompt is None:
        newer = registry.task(stored.name)
        if newer is None:
            return None
        stored, prompt = newer, registry.prompt(newer.version, newer.fingerprint)
    return stored.version, prompt.data


def _path(version: str) -> str:
    return f"versions/{version}{SUFFIX}"
