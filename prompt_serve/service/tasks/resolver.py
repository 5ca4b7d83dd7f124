"""Task names -> ``Task`` objects with their class features in memory.

The registry's revision is read before names are resolved. An upload that was answered is therefore
what the next request gets, in this process and in every other one that shares the database.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prompt_serve.errors import NotReady, PromptServeError, VersionNotFound
from prompt_serve.prompts.prompt_file import from_bytes
from prompt_serve.service.permissions import Permissions
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.storage.tables import StoredPrompt
from prompt_serve.service.storage.visibility import permissions
from prompt_serve.service.tasks.cache import TaskCache
from prompt_serve.service.tasks.features import TaskFeatures, features_to_bytes
from prompt_serve.service.tasks.names import current_versions, task_not_found, version_of_name
from prompt_serve.service.tasks.task import Task

_FILES_PER_READ = 64  # prompt files and class features in memory beside the loaded tasks

_log = logging.getLogger(__name__)


class VersionRemoved(VersionNotFound):
    """The prompt file was removed between two reads of the registry."""

    def __init__(self, version: str) -> None:
        super().__init__(f"Version {version[:12]} was removed.")


class TaskResolver:
    """Resolves names for requests. Thread-safe; its methods block (database, text encoder).

    Args:
        registry: maps names to versions and versions to prompt files.
        features: computes class features that are not stored.
        cache: loaded tasks.
    """

    def __init__(self, registry: Registry, features: TaskFeatures, cache: TaskCache) -> None:
        self._registry = registry
        self._features = features
        self._cache = cache
        self._known = _KnownVersions(-1, {})

    def resolve(self, names: Sequence[str]) -> list[Task]:
        """Return the current tasks of ``names``; ``name@prefix`` is a version of its history.

        Raises:
            TaskNotFound: there is no task of that name; similar names are suggested.
            RequestInvalid, VersionNotFound, VersionAmbiguous: the part after an @ is invalid,
                unknown or the beginning of several versions.
            BackboneMismatch, PromptUnsupported, ProbeMismatch: the task was uploaded while the
                service ran another backbone, or imported without a check.
        """
        return self.load(list(zip(names, self.versions(names), strict=True)))

    def versions(self, names: Sequence[str]) -> list[str]:
        """Return the current versions of ``names`` without loading them.

        Raises:
            TaskNotFound, RequestInvalid, VersionNotFound, VersionAmbiguous: as ``resolve``.
        """
        known = self._current().of(permissions())
        missing = [name for name in names if name not in known]
        if missing:
            # Read after the revision, so no entry is older than the revision it is stored under.
            known.update(current_versions(self._registry, missing))
            for name in missing:
                if "@" in name:
                    known[name] = version_of_name(self._registry, name)
        return [self._version(name, known) for name in names]

    def load(self, named: Sequence[tuple[str, str]]) -> list[Task]:
        """Return the tasks of names and the versions that they had a moment ago.

        Raises:
            BackboneMismatch, PromptUnsupported, ProbeMismatch: as ``resolve``.
            TaskNotFound: a version was removed since, and its name too.
        """
        tasks: list[Task] = []
        for start in range(0, len(named), _FILES_PER_READ):
            some = named[start : start + _FILES_PER_READ]
            unloaded = self._cache.missing([version for _, version in some])
            stored = (
                self._registry.prompts(unloaded, self._features.fingerprint) if unloaded else {}
            )
            tasks += [
                self._load_named(name, version, stored.get(version)) for name, version in some
            ]
        return tasks

    def unloaded(self, versions: Sequence[str]) -> list[str]:
        """Return the versions that are not in memory, nor being loaded. Does not block."""
        return self._cache.missing(versions)

    def loading_sizes(self, versions: Sequence[str]) -> tuple[int, int]:
        """Return the number of classes of versions, and the bytes that loading them takes."""
        n_classes, file_bytes = self._registry.sizes(versions)
        return n_classes, self._features.working_bytes(n_classes) + 2 * file_bytes

    def task(self, version: str, stored: StoredPrompt | None = None) -> Task:
        """Return the task of a full version, loading it if it is not in memory.

        Args:
            version: sha256 of the prompt file.
            stored: the file if it was read before.

        Raises:
            VersionRemoved: the registry has no such prompt file.
            BackboneMismatch, PromptUnsupported, ProbeMismatch: the prompt cannot be served here.
        """
        return self._cache.get(version, lambda: self._load(version, stored))

    def load_pinned(self) -> None:
        """Load all pinned tasks; those that cannot be served are logged and skipped."""
        self.refresh()
        for version in self._registry.pinned():
            try:
                self.task(version)
            except NotReady:
                raise
            except PromptServeError as error:
                _log.error("pinned version %s is not served: %s", version[:12], error.message)

    def refresh(self) -> None:
        """Read the revision; if it has changed, forget known versions and update the pins."""
        self._current()

    def _load_named(self, name: str, version: str, stored: StoredPrompt | None) -> Task:
        try:
            return self.task(version, stored)
        except VersionRemoved:
            # After the version of a name was read, the name was changed so often that the file was
            # no longer kept. Reading again finds the new version.
            self._known = _KnownVersions(-1, {})
            return self.task(self.versions([name])[0])

    def _current(self) -> "_KnownVersions":
        revision = self._registry.revision()
        known = self._known
        if known.revision != revision:
            self._cache.pin(frozenset(self._registry.pinned()))
            # A slow thread may store an older revision here; the next request then reads again.
            known = self._known = _KnownVersions(revision, {})
        return known

    def _version(self, name: str, versions: dict[str, str]) -> str:
        try:
            return versions[name]
        except KeyError:
            raise task_not_found(self._registry, name) from None

    def _load(self, version: str, stored: StoredPrompt | None) -> Task:
        stored = stored or self._registry.prompt(version, self._features.fingerprint)
        if stored is None:
            raise VersionRemoved(version)
        prompt = from_bytes(stored.data)
        if stored.features is not None:
            return self._features.task(version, prompt, self._features.from_bytes(stored.features))
        features = self._features.compute(prompt, version)
        data = features_to_bytes(features)
        self._registry.save_features(version, self._features.fingerprint, data)
        return self._features.task(version, prompt, features)


@dataclass(frozen=True)
class _KnownVersions:
    """Versions that names pointed at, as read at one revision of the registry.

    Callers who may see different tasks share none of them.
    """

    revision: int
    versions: dict[Permissions, dict[str, str]]

    def of(self, caller: Permissions) -> dict[str, str]:
        """Return what was read for callers with these permissions, to be added to."""
        return self.versions.setdefault(replace(caller, actions=frozenset()), {})
