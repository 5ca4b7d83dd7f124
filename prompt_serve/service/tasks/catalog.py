"""Read what the registry knows about tasks: details, prompt files, lists, histories."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from prompt_serve.errors import RequestInvalid
from prompt_serve.prompts.prompt_file import from_bytes
from prompt_serve.schemas import Change, History, TaskInfo, TaskList, TaskSummary
from prompt_serve.service.storage.preconditions import (
    check_task_name,
    is_task_name,
    parse_versioned_name,
)
from prompt_serve.service.storage.prompt_facts import facts_of
from prompt_serve.service.storage.registry import (
    NO_FILTER,
    Registry,
    TaskFilter,
    VersionDamaged,
)
from prompt_serve.service.storage.tables import StoredFacts, StoredTask
from prompt_serve.service.storage.visibility import visible_revision
from prompt_serve.service.tasks.cursors import (
    decode_id_cursor,
    decode_name_cursor,
    encode_cursor,
)
from prompt_serve.service.tasks.names import task_not_found, version_in_history

_MAX_SEARCH = 200  # characters


class TaskCatalog:
    """Answers questions about stored tasks; loads and computes nothing. Its methods block.

    Args:
        registry: the stored tasks.
        fingerprint: of the backbone of this service; tasks of others are listed as not servable.
    """

    def __init__(self, registry: Registry, fingerprint: str) -> None:
        self._registry = registry
        self._fingerprint = fingerprint

    def info(self, name: str) -> TaskInfo:
        """Return the details of a task, or of ``name@prefix``.

        Raises:
            TaskNotFound: there is no such task.
            RequestInvalid, VersionNotFound, VersionAmbiguous: the part after the @ is invalid,
                unknown or the beginning of several versions.
        """
        stored = self._stored(name)
        found = self._registry.facts(stored.version)
        if found is None:
            raise task_not_found(self._registry, name)
        stored = _at_version(stored, found)
        # The file was unreadable when the facts were added.
        facts = found.facts or facts_of(from_bytes(self._data(name, stored)))
        with _readable(stored):
            return self.describe(stored, facts)

    def file(self, name: str) -> tuple[str, bytes]:
        """Return version and bytes of a task's prompt file; raises as ``info`` does."""
        stored = self._stored(name)
        return stored.version, self._data(name, stored)

    def page(self, cursor: str | None, limit: int, task_filter: TaskFilter = NO_FILTER) -> TaskList:
        """Return up to ``limit`` tasks in the order of their names, starting after ``cursor``.

        Raises:
            RequestInvalid: the cursor is not one of this service, or the search text is too long
                or contains NUL.
        """
        texts = (task_filter.search, *task_filter.tags)
        if len(task_filter.search) > _MAX_SEARCH or "\0" in "".join(texts):
            raise RequestInvalid(
                f"The search text may have at most {_MAX_SEARCH} characters; neither it nor a tag "
                f"may contain NUL."
            )
        after = decode_name_cursor(cursor)
        stored, revision = self._registry.tasks(after, limit + 1, task_filter)
        shown = [self._shown(task) for task in stored[:limit]]
        more = encode_cursor(shown[-1].name) if len(stored) > limit else None
        return TaskList(tasks=shown, revision=visible_revision(revision), next=more)

    def history(self, name: str, cursor: str | None, limit: int) -> History:
        """Return up to ``limit`` changes of a name, newest first, starting after ``cursor``.

        Raises:
            TaskNameInvalid, TaskNotFound: the name is invalid, or was never used.
            RequestInvalid: the cursor is not one of this service.
        """
        check_task_name(name)
        found = self._registry.history(name, decode_id_cursor(cursor), limit + 1)
        if not found and cursor is None:
            raise task_not_found(self._registry, name)
        shown = [Change(**vars(change)) for change in found[:limit]]
        more = encode_cursor(shown[-1].id) if len(found) > limit else None
        return History(name=name, changes=shown, next=more)

    def describe(self, stored: StoredTask, facts: str) -> TaskInfo:
        """Return the details of a task from the facts about its version, as JSON can write them."""
        info = TaskInfo.model_validate({**self._summary(stored), **json.loads(facts)})
        info.model_dump_json()  # a change whose answer cannot be made is not stored
        return info

    def _stored(self, name: str) -> StoredTask:
        """Return a task, at the version that ``name@prefix`` names."""
        plain, prefix = parse_versioned_name(name)
        stored = self._registry.task(plain) if is_task_name(plain) else None
        if stored is None:
            raise task_not_found(self._registry, name)
        if prefix is None:
            return stored
        return replace(stored, version=version_in_history(self._registry, plain, prefix))

    def _data(self, name: str, stored: StoredTask) -> bytes:
        found = self._registry.prompt(stored.version, self._fingerprint)
        if found is None:
            raise task_not_found(self._registry, name)
        return found.data

    def _shown(self, stored: StoredTask) -> TaskSummary:
        with _readable(stored):
            return TaskSummary.model_validate(self._summary(stored))

    def _summary(self, stored: StoredTask) -> dict[str, object]:
        fields = {**vars(stored), "tags": list(stored.tags)}
        fields["servable"] = fields.pop("fingerprint") == self._fingerprint
        return fields


@contextmanager
def _readable(stored: StoredTask) -> Iterator[None]:
    """Raise VersionDamaged where what is stored about a version cannot be what was."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise VersionDamaged(stored.version, "its facts cannot be read") from error


def _at_version(stored: StoredTask, found: StoredFacts) -> StoredTask:
    """Return a task as it would be listed at the version of the facts."""
    columns = {name: value for name, value in vars(found).items() if name != "facts"}
    return replace(stored, **columns)
