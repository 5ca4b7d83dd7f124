"""From a name to the task that answers: an immutable object with its class features at hand.

Before names are resolved the registry's revision is read. So what an upload was answered for is
what the next request gets, in this process and in every other one that shares the database.
A request keeps the ``Task`` objects it resolved; later swaps do not touch them.
"""

import difflib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from prompt_serve import __version__
from prompt_serve.bundle import Bundle
from prompt_serve.class_features import EncodeText, class_features
from prompt_serve.encodings import describe
from prompt_serve.errors import TaskNameInvalid, TaskNotFound
from prompt_serve.probe import probe
from prompt_serve.prompt_file import Prompt, from_bytes, to_bytes, version_of
from prompt_serve.schemas import TASK_NAME_PATTERN, TaskInfo, TaskList, TaskSummary, ZeroShotTask
from prompt_serve.service.class_features import check_backbone, verified_class_features
from prompt_serve.service.registry import Registry, StoredTask
from prompt_serve.types import FloatArray

_BYTES_OF_A_NAME = 60  # a str and its place in a tuple, beside its characters
_STORED_FLOAT = np.dtype("<f4")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One version of a task, ready to answer."""

    version: str  # sha256 of the prompt file
    class_names: tuple[str, ...]
    class_features: FloatArray  # (C, E), unit length, read-only
    temperature: float = 1.0  # of the probabilities
    unknown_below: float = 0.0  # a best probability below it means that the image shows no class

    @property
    def size_bytes(self) -> int:
        names = sum(len(name) + _BYTES_OF_A_NAME for name in self.class_names)
        return self.class_features.nbytes + names


class TaskStore:
    """Tasks of a registry for one bundle. Thread-safe; its methods block (database, encoding).

    Args:
        registry: where tasks live.
        bundle: the backbone that runs here.
        encode_text: its text encoder.
        cache_bytes: class features kept in memory; the most recently used version always is.
    """

    def __init__(
        self, registry: Registry, bundle: Bundle, encode_text: EncodeText, cache_bytes: int
    ) -> None:
        self._registry = registry
        self._bundle = bundle
        self._encode_text = encode_text
        self._fingerprint = bundle.manifest.backbone.fingerprint
        self._names = _Names(-1, {})
        self._loaded = _LeastRecentlyUsed(cache_bytes)

    def resolve(self, names: Sequence[str]) -> tuple[Task, ...]:
        """The tasks of ``names``, as they are now.

        Raises:
            TaskNotFound: there is none of that name; with close ones.
            BackboneMismatch: it was uploaded when the service ran another backbone.
        """
        revision = self._registry.revision()
        known = self._names
        if known.revision != revision:
            # A thread that is late puts an older number here; then the next request asks again.
            known = self._names = _Names(revision, {})
        versions = known.versions
        missing = [name for name in names if name not in versions]
        if missing:
            # Read after the revision was, so no entry is older than the number it stands under.
            versions.update(self._registry.versions(missing))
        return tuple(self._task(self._version(name, versions)) for name in names)

    def upload(self, name: str, data: bytes) -> tuple[TaskInfo, bool]:
        """Check a prompt file whole, compute its class features, then point ``name`` at it.

        Returns:
            The task, and whether the name is new. On any error the old version stays.

        Raises:
            TaskNameInvalid: the name has other characters than a name may have.
            PromptError: the file cannot be served here; the message says why.
        """
        check_task_name(name)
        prompt = from_bytes(data)
        features = self._features_for_upload(prompt, version_of(data))
        return self._put(name, data, prompt, features)

    def add_zero_shot(self, wanted: ZeroShotTask) -> tuple[TaskInfo, bool]:
        """A task from class names and templates alone; the same ones give the same version."""
        check_task_name(wanted.name)
        unprobed = Prompt(
            name=wanted.name,
            method="zero-shot",
            class_names=tuple(wanted.class_names),
            templates=tuple(wanted.templates),
            backbone=self._bundle.manifest.backbone,
            probe=np.zeros(len(wanted.class_names), dtype=np.float16),
            tool_version=__version__,
        )
        features = class_features(unprobed, self._bundle.text_side, self._encode_text)
        prompt = _with_probe(unprobed, features)
        return self._put(wanted.name, to_bytes(prompt), prompt, features)

    def delete(self, name: str) -> None:
        """Remove a task; requests that hold it finish with it."""
        if not self._registry.delete(name):
            raise self._not_found(name)

    def info(self, name: str) -> TaskInfo:
        """All there is to know about a task."""
        stored, data = self._stored(name)
        return _info(stored, from_bytes(data))

    def file(self, name: str) -> tuple[str, bytes]:
        """Version and bytes of a task's prompt file."""
        stored, data = self._stored(name)
        return stored.version, data

    def page(self, after: str, limit: int) -> TaskList:
        """Up to ``limit`` tasks in the order of their names, from the first past ``after``."""
        stored, revision = self._registry.tasks(after, limit + 1)
        shown = [TaskSummary(**vars(task)) for task in stored[:limit]]
        more = shown[-1].name if len(stored) > limit else None
        return TaskList(tasks=shown, revision=revision, next=more)

    def _put(
        self, name: str, data: bytes, prompt: Prompt, features: FloatArray
    ) -> tuple[TaskInfo, bool]:
        stored, is_new = self._registry.put(name, data, prompt, _to_stored(features))
        self._loaded.put(_task(stored.version, prompt, features))
        return _info(stored, prompt), is_new

    def _features_for_upload(self, prompt: Prompt, version: str) -> FloatArray:
        check_backbone(prompt, self._bundle)
        known = self._registry.prompt(version, self._fingerprint)
        if known is not None and known.features is not None:
            return self._from_stored(known.features)
        return verified_class_features(prompt, self._bundle, self._encode_text)

    def _version(self, name: str, versions: dict[str, str]) -> str:
        try:
            return versions[name]
        except KeyError:
            raise self._not_found(name) from None

    def _task(self, version: str) -> Task:
        return self._loaded.get(version, lambda: self._load(version))

    def _load(self, version: str) -> Task:
        stored = self._registry.prompt(version, self._fingerprint)
        if stored is None:
            raise TaskNotFound(f"Version {version[:12]} was removed.", name=version, loaded=())
        prompt = from_bytes(stored.data)
        if stored.features is not None:
            return _task(version, prompt, self._from_stored(stored.features))
        features = verified_class_features(prompt, self._bundle, self._encode_text)
        self._registry.save_features(version, self._fingerprint, _to_stored(features))
        return _task(version, prompt, features)

    def _stored(self, name: str) -> tuple[StoredTask, bytes]:
        stored = self._registry.task(name)
        if stored is None:
            raise self._not_found(name)
        prompt = self._registry.prompt(stored.version, self._fingerprint)
        if prompt is None:
            raise self._not_found(name)
        return stored, prompt.data

    def _from_stored(self, features: bytes) -> FloatArray:
        width = self._bundle.manifest.backbone.embed_dim
        return np.frombuffer(features, dtype=_STORED_FLOAT).reshape(-1, width)

    def _not_found(self, name: str) -> TaskNotFound:
        return task_not_found(name, self._registry.names_like(name))


@dataclass(frozen=True)
class _Names:
    """What names pointed at when the registry had this revision."""

    revision: int
    versions: dict[str, str]


class _LeastRecentlyUsed:
    """Tasks by version within a budget of bytes; several threads that want one load it once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._loading: dict[str, Future[Task]] = {}
        self._lock = threading.Lock()

    def get(self, version: str, load: Callable[[], Task]) -> Task:
        with self._lock:
            task = self._tasks.get(version)
            if task is not None:
                self._tasks.move_to_end(version)
                return task
            running = self._loading.get(version)
            if running is None:
                mine = self._loading[version] = Future()
        if running is not None:
            return running.result()
        return self._load(version, load, mine)

    def put(self, task: Task) -> None:
        with self._lock:
            old = self._tasks.pop(task.version, None)
            self._size_bytes += task.size_bytes - (old.size_bytes if old else 0)
            self._tasks[task.version] = task
            while self._size_bytes > self._max_bytes and len(self._tasks) > 1:
                _, evicted = self._tasks.popitem(last=False)
                self._size_bytes -= evicted.size_bytes

    def _load(self, version: str, load: Callable[[], Task], waited_for: Future[Task]) -> Task:
        try:
            task = load()
        # Whatever it is, those who wait for this load must hear of it.
        except BaseException as error:
            with self._lock:
                del self._loading[version]
            waited_for.set_exception(error)
            raise
        self.put(task)
        with self._lock:
            del self._loading[version]
        waited_for.set_result(task)
        return task


def check_task_name(name: str) -> None:
    """Raise TaskNameInvalid unless ``name`` may be the name of a task."""
    if re.fullmatch(TASK_NAME_PATTERN.strip("^$"), name) is None:
        raise TaskNameInvalid(
            f"{name[:200]!r} cannot be the name of a task. Use 1 to 128 letters, digits, dots, "
            f"underscores and hyphens, beginning with a letter or digit.",
            name=name[:200],
        )


def task_not_found(name: str, candidates: Sequence[str]) -> TaskNotFound:
    """The error for an unknown name, with those of ``candidates`` that look like it."""
    close = tuple(difflib.get_close_matches(name, candidates, n=3))
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return TaskNotFound(
        f"No task named {name[:200]!r} is loaded.{hint}", name=name[:200], loaded=close
    )


def _with_probe(prompt: Prompt, features: FloatArray) -> Prompt:
    return Prompt(**{**vars(prompt), "probe": probe(features)})


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


def _info(stored: StoredTask, prompt: Prompt) -> TaskInfo:
    return TaskInfo(
        **vars(stored),
        class_names=list(prompt.class_names),
        templates=list(prompt.templates),
        class_position=prompt.class_position,
        encodings={branch: describe(encoding) for branch, encoding in prompt.encodings.items()},
        temperature=prompt.temperature,
        unknown_below=prompt.unknown_below,
        learned_numbers=prompt.learned_numbers,
        payload_bytes=prompt.payload_bytes,
        metrics=dict(prompt.metrics),
    )
