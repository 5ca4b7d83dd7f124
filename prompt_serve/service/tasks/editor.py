"""Change stored tasks: roll back, alias, delete, tag and pin them."""

import contextlib
from collections.abc import Sequence

from prompt_serve.errors import NotReady, RequestInvalid, VersionNotFound
from prompt_serve.prompts.prompt_file import from_bytes
from prompt_serve.schemas import TagChanges, TaskInfo
from prompt_serve.service.storage.preconditions import (
    ALWAYS,
    Condition,
    check_task_name,
    is_task_name,
    parse_version_prefix,
)
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.tasks.cache import TaskCache
from prompt_serve.service.tasks.catalog import TaskCatalog
from prompt_serve.service.tasks.features import features_to_bytes
from prompt_serve.service.tasks.names import (
    single_version,
    task_not_found,
    version_in_history,
    version_of_name,
)
from prompt_serve.service.tasks.resolver import TaskResolver, VersionRemoved
from prompt_serve.signing.trusted_keys import SignaturePolicy


class TaskEditor:
    """Changes of tasks whose prompt files are stored already. Thread-safe; its methods block.

    Args:
        registry: the stored tasks.
        resolver: loads a version before a name is pointed at it.
        cache: its budget limits how much may be pinned.
        catalog: describes the tasks that were changed.
        signatures: which prompt files a name may be pointed at.
    """

    def __init__(
        self,
        registry: Registry,
        resolver: TaskResolver,
        cache: TaskCache,
        catalog: TaskCatalog,
        signatures: SignaturePolicy,
    ) -> None:
        self._registry = registry
        self._resolver = resolver
        self._cache = cache
        self._catalog = catalog
        self._signatures = signatures

    def rollback(self, name: str, to: str | None, condition: Condition = ALWAYS) -> TaskInfo:
        """Point a name at a version of its history; a deleted name is restored.

        Args:
            name: of the task.
            to: the version or its beginning; None: the previous one, or for a deleted name the
                version it was deleted at.
            condition: must hold, otherwise nothing is changed.

        Raises:
            TaskNotFound, VersionNotFound, VersionAmbiguous: there is no such name or version.
            BackboneMismatch: the version was learned on another backbone.
            SignatureInvalid: signatures are required, and it has none for this name.
            VersionChanged: the condition does not hold.
        """
        self._registry.check_change(name, condition)
        if to is None:
            version = self._previous_version(name)
        else:
            version = version_in_history(self._registry, name, parse_version_prefix(to))
        info, _ = self._point(name, version, "rollback", condition)
        return info

    def alias(self, name: str, of: str, condition: Condition = ALWAYS) -> tuple[TaskInfo, bool]:
        """Point a name at the current version of another task, or at ``other@prefix``.

        Returns:
            The task, and True if the name is new.

        Raises:
            TaskNotFound, VersionNotFound, VersionAmbiguous: there is no task or version ``of``.
            BackboneMismatch: the version was learned on another backbone.
            SignatureInvalid: signatures are required, and it has none for this name.
            VersionChanged: the condition does not hold.
        """
        self._registry.check_change(name, condition)
        return self._point(name, version_of_name(self._registry, of), "alias", condition)

    def delete(self, name: str, condition: Condition = ALWAYS) -> None:
        """Remove a task; requests that hold it finish with it, and a rollback restores it.

        Raises:
            TaskNotFound: there is no such task.
            VersionChanged: the condition does not hold.
        """
        if not is_task_name(name) or not self._registry.delete(name, condition):
            raise task_not_found(self._registry, name)

    def delete_version(self, prefix: str) -> None:
        """Remove the prompt file whose version begins with ``prefix``.

        Raises:
            RequestInvalid, VersionNotFound, VersionAmbiguous: there is no such version, or several.
            VersionInUse: a task points at it.
        """
        versions = self._registry.versions_like(parse_version_prefix(prefix))
        self._registry.delete_version(single_version(versions, prefix, "of any task"))

    def set_tags(self, name: str, tags: Sequence[str]) -> TaskInfo:
        """Replace the tags of a task; raises TaskNotFound if there is no such task."""
        with self._registry.change():
            if not is_task_name(name) or not self._registry.set_tags(name, tags):
                raise task_not_found(self._registry, name)
            return self._catalog.info(name)

    def edit_tags(self, name: str, changes: TagChanges) -> TaskInfo:
        """Add and remove tags of a task; the others stay.

        Raises:
            TaskNotFound: there is no such task.
            RequestInvalid: a tag is both added and removed, or the task would have too many.
        """
        if both := sorted(set(changes.add) & set(changes.remove)):
            raise RequestInvalid(f"Tag {both[0]!r} is both added and removed; do one of the two.")
        with self._registry.change():
            if not is_task_name(name) or not self._registry.edit_tags(
                name, changes.add, changes.remove
            ):
                raise task_not_found(self._registry, name)
            return self._catalog.info(name)

    def set_pinned(self, name: str, pinned: bool) -> TaskInfo:
        """Pin a task, which loads it and keeps it in memory, or unpin it.

        Raises:
            TaskNotFound: there is no such task.
            RequestInvalid: the pinned tasks would exceed the memory of the cache.
        """
        check_task_name(name)  # only names can be pinned, not name@version
        version = version_of_name(self._registry, name)
        size_bytes = self._resolver.task(version).size_bytes if pinned else 0
        others_bytes = self._cache.pinned_bytes(without=version)
        if others_bytes + size_bytes > self._cache.max_bytes:
            raise RequestInvalid(
                f"Task {name!r} takes {size_bytes:,} bytes. With the {others_bytes:,} bytes of "
                f"other pinned tasks that exceeds the cache of {self._cache.max_bytes:,} bytes. "
                f"Unpin others, or raise PROMPT_SERVE_FEATURE_CACHE_BYTES."
            )
        with self._registry.change():
            if not self._registry.set_pinned(name, pinned):
                raise task_not_found(self._registry, name)
            info = self._catalog.info(name)
        with contextlib.suppress(NotReady):  # it is stored; the next request reads the pins
            self._resolver.refresh()
        return info

    def _point(
        self, name: str, version: str, what: str, condition: Condition
    ) -> tuple[TaskInfo, bool]:
        """Point a name at a version; return the task, and True if the name is new."""
        # Loaded before the change, so that a version which cannot be served is refused.
        features = features_to_bytes(self._resolver.task(version).class_features)
        self._check_signature(name, version)
        with self._registry.change():
            is_new = not self._registry.versions([name])
            if not self._registry.point(name, version, what, condition, features):
                raise VersionRemoved(version)
            return self._catalog.info(name), is_new

    def _check_signature(self, name: str, version: str) -> None:
        """Raise SignatureInvalid unless a version may be served under a name today."""
        if not self._signatures.required:
            return
        stored = self._registry.prompt(version, "")
        if stored is None:
            raise VersionRemoved(version)
        self._signatures.check(stored.data)
        self._signatures.check_name(name, from_bytes(stored.data).name)

    def _previous_version(self, name: str) -> str:
        version = self._registry.version_before(name)
        if version is not None and self._registry.has_version(version):
            return version
        if version is None and not self._registry.versions_of(name):
            raise task_not_found(self._registry, name)
        raise VersionNotFound(
            f"There is no version of {name!r} before this one, or it is no longer kept. "
            f"Its history shows those that are kept."
        )
