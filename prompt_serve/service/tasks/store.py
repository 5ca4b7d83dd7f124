"""Store tasks: check a prompt file whole, compute its class features, then point a name at it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prompt_serve import __version__
from prompt_serve.prompts.equal_names import equal_names_notes
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes, version_of
from prompt_serve.schemas import TaskInfo, ZeroShotTask
from prompt_serve.service.observability import metrics
from prompt_serve.service.storage.preconditions import ALWAYS, Condition, check_task_name
from prompt_serve.service.storage.prompt_facts import facts_of
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.service.storage.visibility import check_may_change
from prompt_serve.service.tasks.cache import TaskCache
from prompt_serve.service.tasks.catalog import TaskCatalog
from prompt_serve.service.tasks.features import TaskFeatures, features_to_bytes
from prompt_serve.signing.trusted_keys import SignaturePolicy
from prompt_serve.tasks.admission import backbone_of
from prompt_serve.types import FloatArray


class TaskStore:
    """Uploads for the backbone of this service. Thread-safe; its methods block.

    Args:
        registry: stores the prompt files.
        features: checks prompts and computes their class features.
        cache: uploaded tasks are put into it.
        catalog: describes stored tasks.
        signatures: which prompt files are accepted.
    """

    def __init__(
        self,
        registry: Registry,
        features: TaskFeatures,
        cache: TaskCache,
        catalog: TaskCatalog,
        signatures: SignaturePolicy,
    ) -> None:
        self._registry = registry
        self._features = features
        self._cache = cache
        self._catalog = catalog
        self._signatures = signatures

    @metrics.counted_upload()
    def upload(
        self,
        name: str,
        data: bytes,
        condition: Condition = ALWAYS,
        tags: Sequence[str] = (),
    ) -> tuple[TaskInfo, bool]:
        """Store a prompt file under a name, and add tags to those of the name.

        Returns:
            The task, and True if the name is new. On any error the previous version stays.

        Raises:
            TaskNameInvalid: the name contains characters that task names may not have.
            PromptFileInvalid, BackboneMismatch, PromptUnsupported, ProbeMismatch: the file cannot
                be served here.
            SignatureInvalid: signatures are required, and it has none for this name.
            VersionChanged: the condition does not hold.
        """
        self._registry.check_change(name, condition)
        prompt, features = self._read(name, data)
        return self._put(name, data, prompt, features, condition, tags)

    @metrics.counted_upload()
    def add_zero_shot(
        self, definition: ZeroShotTask, condition: Condition = ALWAYS
    ) -> tuple[TaskInfo, bool]:
        """Store a task made from class names and templates; equal ones give the same version.

        Returns:
            The task, with notes on its class names, and True if the name is new.

        Raises:
            TaskNameInvalid, VersionChanged: as ``upload``.
            PromptTooLong: a class name does not fit the text encoder.
            SignatureInvalid: signatures are required.
        """
        self._registry.check_change(definition.name, condition)
        self._signatures.refuse_unsigned(definition.name)
        prompt, features = self._zero_shot(definition)
        task, is_new = self._put(
            definition.name, to_bytes(prompt), prompt, features, condition, definition.tags
        )
        notes = equal_names_notes(prompt.class_names, self._features.bundle.tokenizer)
        return task.model_copy(update={"notes": list(notes)}), is_new

    def prepare(self, name: str, data: bytes) -> NewTask:
        """Check a prompt file and compute its class features, for ``Registry.put_all``.

        Nothing is stored. Raises the same errors as ``upload`` except VersionChanged.
        """
        check_task_name(name)
        check_may_change(name)
        prompt, features = self._read(name, data)
        self._features.task(version_of(data), prompt, features)  # raises if it cannot be made
        return NewTask(name=name, data=data, prompt=prompt, features=features_to_bytes(features))

    def _read(self, name: str, data: bytes) -> tuple[Prompt, FloatArray]:
        self._signatures.check(data)
        prompt = from_bytes(data)
        self._signatures.check_name(name, prompt.name)
        prompt = replace(prompt, backbone=backbone_of(prompt, self._features.bundle))
        return prompt, self._features.of_upload(prompt, version_of(data))

    def _zero_shot(self, definition: ZeroShotTask) -> tuple[Prompt, FloatArray]:
        without_probe = Prompt(
            name=definition.name,
            method="zero-shot",
            class_names=tuple(definition.class_names),
            templates=tuple(definition.templates),
            backbone=self._features.bundle.manifest.backbone,
            probe=np.zeros(len(definition.class_names), dtype=np.float16),
            tool_version=__version__,
        )
        key = version_of(to_bytes(without_probe))
        features = self._features.compute_unverified(without_probe, key)
        return replace(without_probe, probe=probe(features)), features

    def _put(
        self,
        name: str,
        data: bytes,
        prompt: Prompt,
        features: FloatArray,
        condition: Condition,
        tags: Sequence[str],
    ) -> tuple[TaskInfo, bool]:
        task = self._features.task(version_of(data), prompt, features)
        new = NewTask(
            name=name,
            data=data,
            prompt=prompt,
            features=features_to_bytes(features),
            added_tags=tuple(tags),
        )
        with self._registry.change():
            stored, is_new = self._registry.put(new, condition)
            info = self._catalog.describe(stored, facts_of(prompt))
        self._cache.put(task)
        return info, is_new
