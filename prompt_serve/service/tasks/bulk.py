"""Store many prompt files at once: a zip of them, or the export of another registry."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import IO

from prompt_serve.errors import (
    ArchiveInvalid,
    Overloaded,
    PromptServeError,
    RequestTooLarge,
    counted,
)
from prompt_serve.prompts.prompt_file import from_bytes
from prompt_serve.schemas import BulkItem, BulkReport
from prompt_serve.service.observability import metrics
from prompt_serve.service.problems import problem_of
from prompt_serve.service.request_context import current_request
from prompt_serve.service.storage.preconditions import check_task_name
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.service.tasks.registry_export import read_index, read_version
from prompt_serve.service.tasks.store import TaskStore
from prompt_serve.service.tasks.zip_files import Archive, prompt_files
from prompt_serve.signing.trusted_keys import ANY_FILE, SignaturePolicy

_MAX_FEATURE_BYTES = 512 * 2**20  # class features in memory until all files have been checked

Prepare = Callable[[str, bytes], NewTask]


@dataclass(frozen=True)
class _Source:
    """Prompt file that is read later: task name and a function that returns its bytes."""

    name: str
    read: Callable[[], bytes]


def upload_zip(
    store: TaskStore,
    registry: Registry,
    file: IO[bytes],
    *,
    atomic: bool,
    max_tasks: int,
    tags: Sequence[str] = (),
    namespace: str = "",
) -> BulkReport:
    """Upload every prompt file of a zip under its file name.

    Args:
        store: checks the files and computes their class features.
        registry: stores them.
        file: the zip.
        atomic: store all files or none; otherwise each on its own, with its error in its item.
        max_tasks: largest number of files in a zip.
        tags: added to the tags of every task.
        namespace: of the names of all tasks; empty: none.

    Raises:
        ArchiveInvalid: the zip is invalid or unsafe, or (atomic) a file cannot be served;
            ``errors`` lists the files and reasons.
        RequestTooLarge: too many files.
    """
    archive = Archive(file)
    paths = prompt_files(archive)
    if len(paths) > max_tasks:
        raise RequestTooLarge(
            f"The zip contains {len(paths):,} prompt files; the limit is {max_tasks:,}. "
            f"Send several smaller zips.",
            limit=max_tasks,
            count=len(paths),
        )
    before = f"{namespace}/" if namespace else ""
    sources = [_Source(before + name, partial(archive.read, path)) for name, path in paths.items()]

    def prepare(name: str, data: bytes) -> NewTask:
        return replace(store.prepare(name, data), added_tags=tuple(tags))

    put = _put_all_or_none if atomic else _put_each
    return put(registry, sources, prepare, "put")


def import_zip(registry: Registry, file: IO[bytes], prepare: Prepare) -> BulkReport:
    """Store all tasks of another registry's export, with tags and pins; on an error, none.

    Tasks with the same names are replaced.

    Args:
        registry: stores the tasks.
        file: the zip.
        prepare: makes a ``NewTask`` from a name and a prompt file: ``TaskStore.prepare`` or
            ``without_features``, each of which checks the signature.

    Raises:
        ArchiveInvalid: not an export, or a prompt file in it is invalid or cannot be served.
        RequestTooLarge: the class features of all files do not fit into memory.
    """
    archive = Archive(file)
    listed = read_index(archive).tasks
    exported = {task.name: task for task in listed}

    def prepare_exported(name: str, data: bytes) -> NewTask:
        task = exported[name]
        return replace(prepare(name, data), tags=tuple(task.tags), pinned=task.pinned)

    sources = [_Source(task.name, partial(read_version, archive, task.version)) for task in listed]
    return _put_all_or_none(registry, sources, prepare_exported, "import")


def without_features(name: str, data: bytes, signatures: SignaturePolicy = ANY_FILE) -> NewTask:
    """Read a prompt file but compute no class features: the first request for the task does."""
    check_task_name(name)
    signatures.check(data)
    prompt = from_bytes(data)
    signatures.check_name(name, prompt.name)
    return NewTask(name=name, data=data, prompt=prompt, features=None)


def _put_all_or_none(
    registry: Registry, sources: Iterable[_Source], prepare: Prepare, what: str
) -> BulkReport:
    prepared: list[NewTask] = []
    errors: list[dict[str, object]] = []
    feature_bytes = count = 0
    for source in sources:
        count += 1
        try:
            prepared.append(prepare(source.name, source.read()))
        except (RequestTooLarge, Overloaded):
            raise  # of the whole zip
        except PromptServeError as error:
            if error.status >= 500:
                raise
            metrics.count_upload(metrics.result_of(error))
            errors.append({"name": source.name, **problem_of(error).model_dump()})
            continue
        new_bytes = len(prepared[-1].features or b"")
        # Of the file, and of the prompt that was read from it.
        current_request().memory.grow(new_bytes + 2 * len(prepared[-1].data))
        feature_bytes += new_bytes
        if feature_bytes > _MAX_FEATURE_BYTES:
            raise RequestTooLarge(
                f"The class features of these files take more than {_MAX_FEATURE_BYTES:,} bytes. "
                f"Nothing was changed. Send fewer files at once.",
                limit=_MAX_FEATURE_BYTES,
                count=feature_bytes,
            )
    if errors:
        raise ArchiveInvalid(
            f"{len(errors):,} of {counted(count, 'prompt file')} cannot be served; nothing was "
            f"changed. "
            f"The first is {errors[0]['name']!r}: {errors[0]['detail']}",
            errors=errors[:1000],
        )
    stored = registry.put_all(prepared, what=what)
    metrics.count_upload("stored", len(stored))
    items = [
        BulkItem(name=task.name, version=task.version, is_new=is_new) for task, is_new in stored
    ]
    return BulkReport(items=items, served=len(items), failed=0)


def _put_each(
    registry: Registry, sources: Iterable[_Source], prepare: Prepare, what: str
) -> BulkReport:
    items = []
    for source in sources:
        try:
            with metrics.counted_upload():
                new = prepare(source.name, source.read())
                [(task, is_new)] = registry.put_all([new], what=what)
            items.append(BulkItem(name=source.name, version=task.version, is_new=is_new))
        except PromptServeError as error:
            if error.status >= 500:
                raise
            items.append(BulkItem(name=source.name, error=problem_of(error)))
    failed = sum(item.error is not None for item in items)
    return BulkReport(items=items, served=len(items) - failed, failed=failed)
