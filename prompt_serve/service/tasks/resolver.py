"""Task names -> ``Task`` objects with their class features in memory.

The registry's revision is read before names are resolved. An upload that was answered is therefore
what the next request gets, in this process and in every other one that shares the database. While
the database cannot be read, tasks in memory are served as they were, for a limited time.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prompt_serve.errors import NotReady, PromptServeError, VersionNotFound
from prompt_serve.prompts.prompt_file import from_bytes
from prompt_serve.service.observability import metrics
from prompt_serve.service.permissions import Permissions
from prompt_serve.service.request_context import (
    Actor,
    RequestContext,
    current_request,
    request_scope,
)
from prompt_serve.service.storage.outage import Outage
from prompt_serve.service.storage.registry import Registry, VersionDamaged
from prompt_serve.service.storage.tables import StoredPrompt
from prompt_serve.service.storage.visibility import permissions
from prompt_serve.service.tasks.cache import TaskCache
from prompt_serve.service.tasks.features import TaskFeatures, features_to_bytes
from prompt_serve.service.tasks.names import current_versions, task_not_found, version_of_name
from prompt_serve.tasks.task import Task

_FILES_PER_READ = 64  # prompt files and class features in memory beside the loaded tasks

_NAMES_PER_READ = 1000
_MAX_KEPT_NAMES = 10_000
_MAX_FORMER = 1000  # changes of the registry within the interval of ``keep_known``
_MAX_KNOWN = 100_000  # names in memory with which further NAME@VERSION are no longer kept
_MAX_SELECTED = 200_000  # names in the selections that are kept

_T = TypeVar("_T")

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
        stale_limit_s: maximum time that names are resolved without the database.
    """

    def __init__(
        self, registry: Registry, features: TaskFeatures, cache: TaskCache, stale_limit_s: float = 0
    ) -> None:
        self._registry = registry
        self._features = features
        self._cache = cache
        self._stale_limit_s = stale_limit_s
        self._outage = Outage(stale_limit_s)
        self._known = KnownVersions(-1)
        self._changed_at = float("-inf")  # when this process last stored a change
        self._changes: dict[str, float] = {}  # the same of each task, as long as it matters
        # What was known before the last changes of the registry, until ``keep_known``.
        self._former: deque[KnownVersions] = deque(maxlen=_MAX_FORMER)

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
        current = self._current()
        known = current.of(permissions()).versions
        if self._outage.tolerated:
            known = {
                name: known[name]
                for name in names
                if name in known and current.read_at >= self._changes.get(name, 0.0)
            }
        missing = [name for name in names if name not in known]
        if missing and self._outage.tolerated:
            former = {name: self._former_version(name) for name in missing}
            known = known | {name: version for name, version in former.items() if version}
            missing = [name for name in missing if name not in known]
        pinned: dict[str, str] = {}
        if missing:
            # Read after the revision, so no entry is older than the revision it is stored under.
            known.update(current_versions(self._registry, missing))
            pinned = {
                name: version_of_name(self._registry, name) for name in missing if "@" in name
            }
            if len(known) + len(pinned) <= _MAX_KNOWN:  # one version can be spelled in many ways
                known.update(pinned)
        return [self._version(name, pinned if name in pinned else known) for name in names]

    def read_known(self) -> "KnownVersions":
        """Return what is known at the revision that the registry has now."""
        return self._current()

    def known_versions(self, known: "KnownVersions", names: Sequence[str]) -> list[str] | None:
        """Return the versions of names without reading; None if some have to be read. Does not
        block.

        Args:
            known: from a ``read_known`` that began after the request had come.
            names: of tasks.
        """
        if self._outage.tolerated:
            return None
        versions = known.of(permissions()).versions
        found = [versions[name] for name in names if name in versions]
        return found if len(found) == len(names) else None

    def known_count(self, known: "KnownVersions") -> int | None:
        """Return the number of tasks without reading; None if it has to be read. Does not block."""
        return None if self._outage.tolerated else known.of(permissions()).count

    def count(self, known: "KnownVersions") -> int:
        """Return the number of tasks, read at the revision of ``known`` or a later one."""
        found = known.of(permissions()).count = self._registry.count()
        return found

    def loaded(self, versions: Sequence[str]) -> list[Task] | None:
        """Return the tasks of versions if all of them are in memory; else None. Does not block."""
        return self._cache.found(versions)

    def versions_of_backbone(self, tag: str | None = None) -> dict[str, str]:
        """Return the tasks of the backbone that runs here, by name, with their versions.

        Args:
            tag: only tasks with this tag.
        """
        known, caller = self._current(), permissions()
        selections = known.of(caller).selections
        found = None
        if not self._outage.tolerated or known.read_at >= self._changed_at:
            found = selections.get(tag)
        found = found or self._of_former(lambda k: k.of(caller).selections.get(tag))
        if found is None:
            found = self._registry.versions_of_backbone(self._features.fingerprint, tag)
            if found and len(found) + known.selected <= _MAX_SELECTED:
                selections[tag] = found
        return found

    def image_prompts(self) -> frozenset[str]:
        """Return the versions with vectors for the image tower that runs here."""
        known = self._current()
        found = known.image_prompts
        if found is None:
            found = self._of_former(lambda k: k.image_prompts)
        if found is None:
            found = known.image_prompts = self._registry.image_prompts(self._features.fingerprint)
        return found

    def end_outage(self, changed: frozenset[str] = frozenset()) -> None:
        """Read the database again; called once it has stored a change.

        What was read of these tasks before is not used in the next outage either.
        """
        now = time.monotonic()
        if changed:
            self._changed_at = now
            if len(self._changes) > _MAX_KNOWN:
                for name, changed_at in list(self._changes.items()):
                    if now - changed_at > self._stale_limit_s:
                        self._changes.pop(name, None)
            self._changes.update(dict.fromkeys(changed, now))
        self._outage.end()

    @property
    def stale_s(self) -> float:
        """Age of the known versions while the database cannot be read; else 0."""
        return self._outage.stale_s

    @property
    def tolerates_outage(self) -> bool:
        """True while the database cannot be read and names are resolved without it."""
        return self._outage.tolerated

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
            except NotReady as error:
                if not isinstance(error, VersionDamaged):
                    raise
                _log.error("%s", error.message)
            except PromptServeError as error:
                _log.error("pinned version %s is not served: %s", version[:12], error.message)

    def refresh(self) -> None:
        """Read the revision; if it has changed, forget known versions and update the pins."""
        self._current()

    def keep_known(self) -> None:
        """Read again what requests asked for before the last change, so that an outage finds it."""
        known, former = self._current(), list(self._former)
        if not former or self._outage.tolerated:
            return
        # Copies, here and below: threads of slow requests may still add to them.
        for caller in {caller for one in former for caller in list(one.callers)}:
            with request_scope(RequestContext(actor=Actor("resolver", permissions=caller))):
                self._keep_names(known.of(caller), [one.of(caller) for one in former])
        if any(one.image_prompts is not None for one in former):
            self.image_prompts()
        if self._known is known:  # else there was a change meanwhile, and what was read is there
            for _ in former:
                self._former.popleft()

    def _keep_names(self, known: "_KnownNames", former: Sequence["_KnownNames"]) -> None:
        names = {name for one in former for name in list(one.versions) if "@" not in name}
        wanted = [name for name in names if name not in known.versions][:_MAX_KEPT_NAMES]
        for start in range(0, len(wanted), _NAMES_PER_READ):
            some = wanted[start : start + _NAMES_PER_READ]
            known.versions.update(current_versions(self._registry, some))
        for tag in {tag for one in former for tag in list(one.selections)}:
            self.versions_of_backbone(tag)

    def _former_version(self, name: str) -> str | None:
        caller = permissions()
        changed_at = self._changes.get(name, float("-inf"))
        return self._of_former(lambda former: former.of(caller).versions.get(name), changed_at)

    def _of_former(
        self, find: "Callable[[KnownVersions], _T | None]", changed_at: float | None = None
    ) -> _T | None:
        """Look something up in what was known before the last changes, during an outage.

        Args:
            find: looks it up.
            changed_at: when this process last changed it; None: with any task.
        """
        least = self._changed_at if changed_at is None else changed_at
        for former in reversed(self._former) if self._outage.tolerated else ():
            stale_s = time.monotonic() - former.read_at
            if stale_s > self._stale_limit_s or former.read_at < least:
                return None
            found = find(former)
            if found is not None:
                current_request().stale_s = max(stale_s, current_request().stale_s)
                return found
        return None

    def _load_named(self, name: str, version: str, stored: StoredPrompt | None) -> Task:
        try:
            return self.task(version, stored)
        except VersionRemoved:
            # After the version of a name was read, the name was changed so often that the file was
            # no longer kept. Reading again finds the new version.
            self._known = KnownVersions(-1)
            again = self.versions([name])[0]
            try:
                return self.task(again)
            except VersionRemoved as error:
                if again != version:  # it was changed so often once more; callers retry
                    raise NotReady(f"Task {name!r} is changing.", retry_after_s=1.0) from error
                raise VersionDamaged(
                    version, f"{name!r} points at it, and it has no file"
                ) from error

    def _current(self) -> "KnownVersions":
        known = self._outage.read(self._read_known, self._last_known)
        if self._outage.tolerated:
            current_request().stale_s = self._outage.stale_s
            metrics.stale_reads.inc()
        return known

    def _last_known(self) -> "KnownVersions | None":
        known = self._known
        return None if known.revision < 0 else known

    def _read_known(self) -> "KnownVersions":
        read_at = time.monotonic()
        revision = self._registry.revision()
        known = self._known
        if known.revision != revision:
            self._cache.pin(frozenset(self._registry.pinned()))
            # A slow thread may store an older revision here; the next request then reads again.
            if known.revision >= 0 and self._stale_limit_s:
                self._former.append(known)
            known = self._known = KnownVersions(revision)
        known.read_at = read_at
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
        features = self._features.read_stored(prompt, version, stored.features)
        if features is not None:
            return self._features.task(version, prompt, features)
        features = self._features.compute(prompt, version)
        data = features_to_bytes(features)
        with contextlib.suppress(NotReady):  # it saves the next start the computation, no more
            damaged = stored.features is not None
            fingerprint = self._features.fingerprint
            self._registry.save_features(version, fingerprint, data, replace=damaged)
        return self._features.task(version, prompt, features)


@dataclass
class _KnownNames:
    """Versions that names pointed at, selections of tasks by tag (None: all), number of tasks."""

    versions: dict[str, str] = field(default_factory=dict)
    selections: dict[str | None, dict[str, str]] = field(default_factory=dict)
    count: int | None = None


@dataclass
class KnownVersions:
    """What was read at one revision of the registry.

    Callers who may see different tasks share no names.
    """

    revision: int
    read_at: float = 0.0  # ``time.monotonic()`` when the registry last had this revision
    image_prompts: frozenset[str] | None = None
    callers: dict[Permissions, _KnownNames] = field(default_factory=dict)

    def of(self, caller: Permissions) -> _KnownNames:
        """Return what was read for callers with these permissions, to be added to."""
        return self.callers.setdefault(caller.of_tasks, _KnownNames())

    @property
    def selected(self) -> int:
        """Number of names in all selections."""
        return sum(
            len(one) for own in list(self.callers.values()) for one in own.selections.values()
        )
