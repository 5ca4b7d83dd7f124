"""From a name to the task that answers: an immutable object with its class features at hand.

Before names are resolved the registry's revision is read. So what an upload was answered for is
what the next request gets, in this process and in every other one that shares the database.
A request keeps the ``Task`` objects it resolved; later swaps do not touch them.
"""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prompt_serve import __version__
from prompt_serve.bundle import Bundle
from prompt_serve.errors import (
    NotReady,
    PromptServeError,
    RequestInvalid,
    TaskNotFound,
    VersionAmbiguous,
    VersionNotFound,
)
from prompt_serve.prompts.class_features import EncodeText, class_features
from prompt_serve.prompts.encodings import describe
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes, version_of
from prompt_serve.schemas import Change, History, TaskInfo, TaskList, TaskSummary, ZeroShotTask
from prompt_serve.service.observability import metrics
from prompt_serve.service.storage.preconditions import (
    ALWAYS,
    Condition,
    check_task_name,
    checked_prefix,
    is_task_name,
    pin_of,
)
from prompt_serve.service.storage.registry import EVERY, NewTask, Registry, TaskFilter
from prompt_serve.service.storage.tables import StoredTask
from prompt_serve.service.tasks.admission import check_backbone, verified_class_features
from prompt_serve.service.tasks.cache import CacheStatistics, Task, TaskCache
from prompt_serve.service.tasks.cursors import cursor_of, number_after, text_after
from prompt_serve.service.tasks.feature_queue import FeatureQueue
from prompt_serve.types import FloatArray

__all__ = ["Task", "TaskStore", "check_task_name", "task_not_found"]

_STORED_FLOAT = np.dtype("<f4")
_MAX_SEARCH = 200  # characters

_log = logging.getLogger(__name__)


class TaskStore:
    """Tasks of a registry for one bundle. Thread-safe; its methods block (database, encoding).

    Args:
        registry: where tasks live.
        bundle: the backbone that runs here.
        encode_text: its text encoder.
        cache_bytes: class features kept in memory.
    """

    def __init__(
        self, registry: Registry, bundle: Bundle, encode_text: EncodeText, cache_bytes: int
    ) -> None:
        self._registry = registry
        self._bundle = bundle
        self._encode_text = encode_text
        self._fingerprint = bundle.manifest.backbone.fingerprint
        self._names = _Names(-1, {})
        self._cache = TaskCache(cache_bytes)
        self._encoding = FeatureQueue()

    def close(self) -> None:
        """Finish what is being encoded."""
        self._encoding.close()

    # Answering

    def resolve(self, names: Sequence[str]) -> tuple[Task, ...]:
        """The tasks of ``names``, as they are now; ``name@sha`` is a version of its history.

        Raises:
            TaskNotFound: there is none of that name; with close ones.
            VersionNotFound, VersionAmbiguous, RequestInvalid: of what stands behind an @.
            BackboneMismatch: it was uploaded when the service ran another backbone.
        """
        try:
            return self._resolve(names)
        except _VersionGone:
            # Between the reading of its version and of its file the name was pointed elsewhere so
            # often that the file was dropped. The next reading finds the new version.
            self._names = _Names(-1, {})
            return self._resolve(names)

    def load_pinned(self) -> int:
        """Load what is to stay in memory; the number of tasks. What cannot be served is logged."""
        self._names_now()
        loaded = 0
        for version in self._registry.pinned():
            try:
                self._task(version)
                loaded += 1
            except NotReady:
                raise
            except PromptServeError as error:
                _log.error("pinned version %s is not served: %s", version[:12], error.message)
        return loaded

    @property
    def cache_statistics(self) -> CacheStatistics:
        return self._cache.statistics()

    @property
    def encoded(self) -> int:
        """Versions whose class features were computed since the start."""
        return self._encoding.encoded

    @property
    def waiting_to_encode(self) -> int:
        """Versions whose class features are being computed, or wait for it."""
        return self._encoding.waiting

    # Changing

    @metrics.counted_upload()
    def upload(
        self, name: str, data: bytes, condition: Condition = ALWAYS
    ) -> tuple[TaskInfo, bool]:
        """Check a prompt file whole, compute its class features, then point ``name`` at it.

        Returns:
            The task, and whether the name is new. On any error the old version stays.

        Raises:
            TaskNameInvalid: the name has other characters than a name may have.
            PromptError: the file cannot be served here; the message says why.
            VersionChanged: the condition does not hold.
        """
        self.check(name, condition)
        new = self.checked(name, data)
        return self._put(new, condition)

    def checked(self, name: str, data: bytes) -> NewTask:
        """A prompt file with its class features, for ``Registry.put``; nothing is changed yet."""
        check_task_name(name)
        prompt = from_bytes(data)
        features = self._features(prompt, version_of(data))
        return NewTask(name=name, data=data, prompt=prompt, features=_to_stored(features))

    @metrics.counted_upload()
    def add_zero_shot(
        self, wanted: ZeroShotTask, condition: Condition = ALWAYS
    ) -> tuple[TaskInfo, bool]:
        """A task from class names and templates alone; the same ones give the same version."""
        self.check(wanted.name, condition)
        unprobed = Prompt(
            name=wanted.name,
            method="zero-shot",
            class_names=tuple(wanted.class_names),
            templates=tuple(wanted.templates),
            backbone=self._bundle.manifest.backbone,
            probe=np.zeros(len(wanted.class_names), dtype=np.float16),
            tool_version=__version__,
        )
        features = self._encoding.run(
            version_of(to_bytes(unprobed)),
            lambda: class_features(unprobed, self._bundle.text_side, self._encode_text),
        )
        prompt = _with_probe(unprobed, features)
        new = NewTask(
            name=wanted.name,
            data=to_bytes(prompt),
            prompt=prompt,
            features=_to_stored(features),
        )
        return self._put(new, condition)

    def rollback(self, name: str, to: str | None, condition: Condition = ALWAYS) -> TaskInfo:
        """Point a name at a version of its history again; of a deleted name, bring it back.

        Args:
            name: of the task.
            to: the version or its beginning; None: the one before, or the one it was deleted at.
            condition: what must hold.

        Raises:
            TaskNotFound, VersionNotFound, VersionAmbiguous: there is nothing to go back to.
            BackboneMismatch: the version was learned on another backbone.
        """
        self.check(name, condition)
        version = self._version_back(name, to)
        return self._point(name, version, "rollback", condition)

    def alias(self, name: str, of: str, condition: Condition = ALWAYS) -> tuple[TaskInfo, bool]:
        """Point a name at the version of another task; returns whether the name is new."""
        self.check(name, condition)
        version = self._version_named(of)
        is_new = self._registry.task(name) is None
        return self._point(name, version, "alias", condition), is_new

    def delete(self, name: str, condition: Condition = ALWAYS) -> None:
        """Remove a task; requests that hold it finish with it, and a rollback brings it back."""
        if not is_task_name(name) or not self._registry.delete(name, condition):
            raise self._not_found(name)

    def delete_version(self, prefix: str) -> str:
        """Remove a prompt file that no name points at; returns its version."""
        version = self._only(
            self._registry.versions_like(checked_prefix(prefix)), prefix, "of any task"
        )
        self._registry.delete_version(version)
        return version

    def set_tags(self, name: str, tags: Sequence[str]) -> TaskInfo:
        if not is_task_name(name) or not self._registry.set_tags(name, tags):
            raise self._not_found(name)
        return self.info(name)

    def set_pinned(self, name: str, pinned: bool) -> TaskInfo:
        """Keep a task in memory, loading it now, or no longer.

        Raises:
            RequestInvalid: the pinned tasks would fill the memory that all tasks share.
        """
        check_task_name(name)  # a pin of a version (name@sha) is none of a name
        version = self._version_named(name)
        size_bytes = self._task(version).size_bytes if pinned else 0
        held = self._cache.pinned_bytes(without=version)
        limit = self._cache.statistics().max_bytes
        if held + size_bytes > limit:
            raise RequestInvalid(
                f"Task {name!r} takes {size_bytes:,} bytes; with {held:,} of other pinned tasks "
                f"that exceeds the {limit:,} of the cache. Unpin others, or raise "
                f"PROMPT_SERVE_FEATURE_CACHE_BYTES."
            )
        if not self._registry.set_pinned(name, pinned):
            raise self._not_found(name)
        self._names_now()
        return self.info(name)

    def check(self, name: str, condition: Condition) -> None:
        """Raise at once what a change of ``name`` would raise after the encoding."""
        check_task_name(name)
        if condition != ALWAYS:
            condition.check(name, self._registry.versions([name]).get(name))

    # Telling

    def info(self, name: str) -> TaskInfo:
        """All there is to know about a task, or about ``name@sha``."""
        stored, data = self._stored(name)
        return self._info(stored, from_bytes(data))

    def file(self, name: str) -> tuple[str, bytes]:
        """Version and bytes of a task's prompt file."""
        stored, data = self._stored(name)
        return stored.version, data

    def page(self, cursor: str | None, limit: int, wanted: TaskFilter = EVERY) -> TaskList:
        """Up to ``limit`` tasks in the order of their names, from where ``cursor`` says."""
        if len(wanted.search) > _MAX_SEARCH or "\0" in "".join((wanted.search, *wanted.tags)):
            raise RequestInvalid(f"Search for {_MAX_SEARCH} characters at most, none of them NUL.")
        stored, revision = self._registry.tasks(text_after(cursor), limit + 1, wanted)
        shown = [TaskSummary(**self._summary(task)) for task in stored[:limit]]
        more = cursor_of(shown[-1].name) if len(stored) > limit else None
        return TaskList(tasks=shown, revision=revision, next=more)

    def history(self, name: str, cursor: str | None, limit: int) -> History:
        """What a name pointed at, newest first."""
        check_task_name(name)
        found = self._registry.history(name, number_after(cursor), limit + 1)
        if not found and cursor is None:
            raise self._not_found(name)
        shown = [Change(**vars(change)) for change in found[:limit]]
        more = cursor_of(shown[-1].id) if len(found) > limit else None
        return History(name=name, changes=shown, next=more)

    def _resolve(self, names: Sequence[str]) -> tuple[Task, ...]:
        known = self._names_now()
        versions = known.versions
        missing = [name for name in names if name not in versions]
        if missing:
            # Read after the revision was, so no entry is older than the number it stands under.
            versions.update(self._versions_of(missing))
            for name in missing:
                if "@" in name:
                    versions[name] = self._version_named(name)
        return tuple(self._task(self._version(name, versions)) for name in names)

    def _names_now(self) -> "_Names":
        revision = self._registry.revision()
        known = self._names
        if known.revision != revision:
            self._cache.pin(frozenset(self._registry.pinned()))
            # A thread that is late puts an older number here; then the next request asks again.
            known = self._names = _Names(revision, {})
        return known

    def _put(self, new: NewTask, condition: Condition) -> tuple[TaskInfo, bool]:
        stored, is_new = self._registry.put(new, condition)
        assert new.features is not None  # noqa: S101 (made by ``checked``)
        self._cache.put(_task(stored.version, new.prompt, self._from_stored(new.features)))
        return self._info(stored, new.prompt), is_new

    def _point(self, name: str, version: str, what: str, condition: Condition) -> TaskInfo:
        task = self._task(version)  # before the swap: what cannot be served is refused here
        features = (self._fingerprint, _to_stored(task.class_features))
        if not self._registry.point(name, version, what, condition, features):
            raise _gone(version)
        return self.info(name)

    def _version_back(self, name: str, to: str | None) -> str:
        if to is not None:
            return self._version_in_history(name, checked_prefix(to))
        version = self._registry.version_before(name)
        if version is not None and self._registry.prompt(version, "") is not None:
            return version
        if version is None and not self._registry.versions_of(name):
            raise self._not_found(name)
        raise VersionNotFound(
            f"There is no version of {name!r} before this one, or it is kept no longer. "
            f"Its history shows those that are kept."
        )

    def _versions_of(self, names: Sequence[str]) -> dict[str, str]:
        return self._registry.versions([name for name in names if is_task_name(name)])

    def _version_named(self, name: str) -> str:
        """Of a task, or of ``name@sha``."""
        pin = pin_of(name)
        plain = name if pin is None else pin.name
        version = self._version(plain, self._versions_of([plain]))
        return version if pin is None else self._version_in_history(plain, pin.prefix)

    def _version_in_history(self, name: str, prefix: str) -> str:
        return self._only(
            self._registry.versions_of(name, prefix), prefix, f"in the history of {name!r}"
        )

    def _only(self, versions: list[str], prefix: str, where: str) -> str:
        if not versions:
            raise VersionNotFound(
                f"No version {where} begins with {prefix[:64]}, or it is kept no longer."
            )
        if len(versions) > 1:
            raise VersionAmbiguous(
                f"Several versions {where} begin with {prefix[:64]}. Give more digits.",
                versions=tuple(sorted(versions)),
            )
        return versions[0]

    def _features(self, prompt: Prompt, version: str) -> FloatArray:
        """Class features of a file: known ones, or computed in turn with others."""
        check_backbone(prompt, self._bundle)
        known = self._registry.prompt(version, self._fingerprint)
        if known is not None and known.features is not None:
            return self._from_stored(known.features)
        return self._encoding.run(version, self._verified(prompt))

    def _verified(self, prompt: Prompt) -> Callable[[], FloatArray]:
        return lambda: verified_class_features(prompt, self._bundle, self._encode_text)

    def _version(self, name: str, versions: dict[str, str]) -> str:
        try:
            return versions[name]
        except KeyError:
            raise self._not_found(name) from None

    def _task(self, version: str) -> Task:
        return self._cache.get(version, lambda: self._load(version))

    def _load(self, version: str) -> Task:
        stored = self._registry.prompt(version, self._fingerprint)
        if stored is None:
            raise _gone(version)
        prompt = from_bytes(stored.data)
        if stored.features is not None:
            return _task(version, prompt, self._from_stored(stored.features))
        check_backbone(prompt, self._bundle)
        features = self._encoding.run(version, self._verified(prompt))
        self._registry.save_features(version, self._fingerprint, _to_stored(features))
        return _task(version, prompt, features)

    def _stored(self, name: str) -> tuple[StoredTask, bytes]:
        pin = pin_of(name)
        plain = name if pin is None else pin.name
        stored = self._registry.task(plain) if is_task_name(plain) else None
        if stored is None:
            raise self._not_found(name)
        version = stored.version if pin is None else self._version_named(name)
        found = self._registry.prompt(version, self._fingerprint)
        if found is None:
            raise self._not_found(name)
        if version == stored.version:
            return stored, found.data
        return _at(stored, version, found.data), found.data

    def _from_stored(self, features: bytes) -> FloatArray:
        width = self._bundle.manifest.backbone.embed_dim
        return np.frombuffer(features, dtype=_STORED_FLOAT).reshape(-1, width)

    def _not_found(self, name: str) -> TaskNotFound:
        known = self._registry.names_like(name) if is_task_name(name[:1]) else ()
        return task_not_found(name, known)

    def _summary(self, stored: StoredTask) -> dict[str, object]:
        facts = {**vars(stored), "tags": list(stored.tags)}
        facts["servable"] = facts.pop("fingerprint") == self._fingerprint
        return facts

    def _info(self, stored: StoredTask, prompt: Prompt) -> TaskInfo:
        return TaskInfo.model_validate(
            {
                **self._summary(stored),
                "class_names": list(prompt.class_names),
                "templates": list(prompt.templates),
                "class_position": prompt.class_position,
                "encodings": {b: describe(e) for b, e in prompt.encodings.items()},
                "temperature": prompt.temperature,
                "unknown_below": prompt.unknown_below,
                "learned_numbers": prompt.learned_numbers,
                "payload_bytes": prompt.payload_bytes,
                "metrics": dict(prompt.metrics),
            }
        )


@dataclass(frozen=True)
class _Names:
    """What names pointed at when the registry had this revision."""

    revision: int
    versions: dict[str, str]


class _VersionGone(VersionNotFound):
    """The file was dropped between two readings."""


def _gone(version: str) -> _VersionGone:
    return _VersionGone(f"Version {version[:12]} was removed.")


def task_not_found(name: str, candidates: Sequence[str]) -> TaskNotFound:
    """The error for an unknown name, with those of ``candidates`` that look like it."""
    close = tuple(difflib.get_close_matches(name, candidates, n=3))
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return TaskNotFound(
        f"No task named {name[:200]!r} is loaded.{hint}", name=name[:200], loaded=close
    )


def _with_probe(prompt: Prompt, features: FloatArray) -> Prompt:
    return Prompt(**{**vars(prompt), "probe": probe(features)})


def _at(stored: StoredTask, version: str, data: bytes) -> StoredTask:
    """A task as it was at another version."""
    prompt = from_bytes(data)
    return replace(
        stored,
        version=version,
        method=prompt.method,
        backbone=prompt.backbone.id,
        fingerprint=prompt.backbone.fingerprint,
        n_classes=len(prompt.class_names),
        size_bytes=len(data),
    )


def _task(version: str, prompt: Prompt, features: FloatArray) -> Task:
    features.flags.writeable = False
    return Task(
        version=version,
        class_names=prompt.class_names,
        class_features=features,
        temperature=prompt.temperature,
        unknown_below=prompt.unknown_below,
    )


def _to_stored(features: FloatArray) -> bytes:
    return features.astype(_STORED_FLOAT, copy=False).tobytes()
