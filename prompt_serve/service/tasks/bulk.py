"""Many prompt files at once: a folder or zip of them, or the export of another registry."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import IO

from prompt_serve.errors import ArchiveInvalid, PromptServeError, RequestTooLarge
from prompt_serve.prompts.prompt_file import from_bytes
from prompt_serve.schemas import BulkItem, BulkReport
from prompt_serve.service.observability import metrics
from prompt_serve.service.problems import problem_of
from prompt_serve.service.storage.preconditions import check_task_name
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.service.tasks.registry_export import read_index, read_version
from prompt_serve.service.tasks.store import TaskStore
from prompt_serve.service.tasks.zip_files import Archive, prompt_files

_MAX_FEATURE_BYTES = 512 * 2**20  # held until all files of a request are known to be good

Check = Callable[[str, bytes], NewTask]


@dataclass(frozen=True)
class _Source:
    """One prompt file to come: its name, and how to get at its bytes."""

    name: str
    read: Callable[[], bytes]


def upload_zip(
    tasks: TaskStore, registry: Registry, file: IO[bytes], *, atomic: bool, max_tasks: int
) -> BulkReport:
    """Serve every prompt file of a zip under its file's name.

    Args:
        tasks: checks the files and computes their class features.
        registry: takes them.
        file: the zip.
        atomic: all files or none; otherwise each for itself, with what is wrong in its item.
        max_tasks: files of one zip.

    Raises:
        ArchiveInvalid: the zip is not a safe one, or (atomic) a file cannot be served; ``errors``
            tells which and why.
        RequestTooLarge: too many files.
    """
    archive = Archive(file)
    paths = prompt_files(archive)
    if len(paths) > max_tasks:
        raise RequestTooLarge(
            f"The zip holds {len(paths):,} prompt files; at most {max_tasks:,} are taken at once. "
            f"Send several smaller ones.",
            limit=max_tasks,
            count=len(paths),
        )
    sources = [_Source(name, partial(archive.read, path)) for name, path in paths.items()]
    put = _all_or_none if atomic else _each
    return put(registry, sources, tasks.checked, "put")


def import_zip(registry: Registry, file: IO[bytes], check: Check) -> BulkReport:
    """Take over all tasks of another registry's export; tasks of the same names are replaced.

    All of them or, on an error, none. Tags and pins come along.

    Args:
        registry: takes them.
        file: the zip.
        check: makes a task of a name and the bytes of a prompt file, as ``TaskStore.checked`` or
            ``unencoded`` do.
    """
    archive = Archive(file)
    listed = read_index(archive).tasks
    labels = {task.name: task for task in listed}

    def checked(name: str, data: bytes) -> NewTask:
        task = labels[name]
        return replace(check(name, data), tags=tuple(task.tags), pinned=task.pinned)

    sources = [_Source(task.name, partial(read_version, archive, task.version)) for task in listed]
    return _all_or_none(registry, sources, checked, "import")


def unencoded(name: str, data: bytes) -> NewTask:
    """A prompt file as it is: its class features are computed when the task is first asked for."""
    check_task_name(name)
    return NewTask(name=name, data=data, prompt=from_bytes(data), features=None)


def _all_or_none(
    registry: Registry, sources: Iterable[_Source], check: Check, what: str
) -> BulkReport:
    ready: list[NewTask] = []
    errors: list[dict[str, object]] = []
    held_bytes = count = 0
    for source in sources:
        count += 1
        try:
            ready.append(check(source.name, source.read()))
        except PromptServeError as error:
            if error.status >= 500:
                raise
            metrics.count_upload(metrics.result_of(error))
            errors.append({"name": source.name, **problem_of(error).model_dump()})
            continue
        held_bytes += len(ready[-1].features or b"")
        if held_bytes > _MAX_FEATURE_BYTES:
            raise RequestTooLarge(
                f"The class features of these files take more than {_MAX_FEATURE_BYTES:,} bytes. "
                f"Nothing was changed. Send fewer at once.",
                limit=_MAX_FEATURE_BYTES,
                count=held_bytes,
            )
    if errors:
        raise ArchiveInvalid(
            f"{len(errors)} of {count} prompt files cannot be served; nothing was changed. "
            f"The first: {errors[0]['name']!r}: {errors[0]['detail']}",
            errors=errors[:1000],
        )
    stored = registry.put_all(ready, what=what)
    metrics.count_upload("stored", len(stored))
    items = [
        BulkItem(name=task.name, version=task.version, is_new=is_new) for task, is_new in stored
    ]
    return BulkReport(items=items, served=len(items), failed=0)


def _each(registry: Registry, sources: Iterable[_Source], check: Check, what: str) -> BulkReport:
    items = []
    for source in sources:
        try:
            with metrics.counted_upload():
                new = check(source.name, source.read())
                [(task, is_new)] = registry.put_all([new], what=what)
            items.append(BulkItem(name=source.name, version=task.version, is_new=is_new))
        except PromptServeError as error:
            if error.status >= 500:
                raise
            items.append(BulkItem(name=source.name, error=problem_of(error)))
    failed = sum(item.error is not None for item in items)
    return BulkReport(items=items, served=len(items) - failed, failed=failed)
