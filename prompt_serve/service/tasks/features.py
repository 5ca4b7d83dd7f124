"""Class features of prompts: from the registry if stored there, otherwise computed and verified.

Together with the image vectors of a prompt they make a task, ready to score images.
"""

import logging
import math
from collections.abc import Callable

import numpy as np

from prompt_serve.bundle import Bundle
from prompt_serve.prompts.class_features import EncodeText, class_features
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.probe import TOLERANCE, probe_difference
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.service.request_context import current_request
from prompt_serve.service.storage.registry import Registry, VersionDamaged
from prompt_serve.service.tasks.feature_queue import FeatureQueue
from prompt_serve.tasks.admission import verified_class_features
from prompt_serve.tasks.task import Task
from prompt_serve.types import FloatArray

_STORED_FLOAT = np.dtype("<f4")
_NAME_BYTES = 200  # of a class name in memory
_CONTEXT_BYTES = 8  # per learned number: in float32, and what is made of it
_VECTOR_BYTES = 48  # per number of class vectors: six arrays of float64

_log = logging.getLogger(__name__)


class TaskFeatures:
    """Class features for the backbone of one bundle. Thread-safe; its methods block.

    Args:
        registry: stores prompt files and class features.
        bundle: the backbone of this service.
        encode_text: its text encoder.
        image_rows: lays out the image vectors of a prompt.
    """

    def __init__(
        self,
        registry: Registry,
        bundle: Bundle,
        encode_text: EncodeText,
        image_rows: Callable[[Prompt], ImageRows | None],
    ) -> None:
        self._registry = registry
        self._bundle = bundle
        self._image_rows = image_rows
        self._queue = FeatureQueue(encode_text)

    def close(self) -> None:
        """End all computations after the chunk of classes at hand."""
        self._queue.close()

    @property
    def bundle(self) -> Bundle:
        """Backbone that the features belong to."""
        return self._bundle

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the backbone that the features belong to."""
        return self._bundle.manifest.backbone.fingerprint

    def working_bytes(self, n_classes: int) -> int:
        """Return the memory that the features of so many classes take while they are computed or
        read: themselves, their bytes, and the class names."""
        width = self._bundle.manifest.backbone.embed_dim
        return n_classes * (2 * width * _STORED_FLOAT.itemsize + _NAME_BYTES)

    def of_upload(self, prompt: Prompt, version: str) -> FloatArray:
        """Return the class features (C, E) of an uploaded prompt, stored or computed.

        Raises:
            BackboneMismatch, PromptUnsupported, ProbeMismatch: the prompt cannot be served here.
        """
        try:
            stored = self._registry.prompt(version, self.fingerprint)
        except VersionDamaged:  # what is uploaded takes its place
            stored = None
        # Features are stored only after the same file has passed all checks for this backbone.
        found = None if stored is None else self.read_stored(prompt, version, stored.features)
        return self.compute(prompt, version) if found is None else found

    def compute(self, prompt: Prompt, version: str) -> FloatArray:
        """Compute and verify the class features (C, E) of a prompt, in the queue.

        The checks run before the queue: a prompt of another backbone does not wait for its turn.

        Raises:
            BackboneMismatch, PromptUnsupported, ProbeMismatch: the prompt cannot be served here.
        """
        return verified_class_features(
            prompt, self._bundle, lambda: self.compute_unverified(prompt, version)
        )

    def compute_unverified(self, prompt: Prompt, version: str) -> FloatArray:
        """Compute the class features (C, E) of a prompt made here, which has no probe yet.

        Raises:
            Overloaded, RequestTooLarge: they do not fit into the memory of requests.
        """
        size = self.working_bytes(len(prompt.class_names)) + _folding_bytes(prompt)
        current_request().memory.grow(size)
        return self._queue.run(
            version,
            len(prompt.class_names),
            lambda encode: class_features(prompt, self._bundle.text_side, encode),
        )

    def task(self, version: str, prompt: Prompt, features: FloatArray) -> Task:
        """Make the task of a prompt from its class features (C, E).

        Raises:
            PromptFileInvalid: its image vectors are for another tower.
        """
        return Task.from_prompt(version, prompt, features, self._image_rows(prompt))

    def read_stored(self, prompt: Prompt, version: str, data: bytes | None) -> FloatArray | None:
        """Read class features (C, E) as stored in the registry.

        Args:
            prompt: whose features they are; its probe tells if they were changed since.
            version: of the prompt.
            data: as stored; None if they are not.

        Returns:
            None if they have to be computed: there are none, or they are damaged.
        """
        if data is None:
            return None
        shape = len(prompt.class_names), self._bundle.manifest.backbone.embed_dim
        if isinstance(data, bytes) and len(data) == math.prod(shape) * _STORED_FLOAT.itemsize:
            features = np.frombuffer(data, dtype=_STORED_FLOAT).reshape(shape)
            if probe_difference(prompt.probe, features) <= TOLERANCE:
                return features
        _log.error("the stored class features of version %s are damaged", version[:12])
        return None


def _folding_bytes(prompt: Prompt) -> int:
    """Return the memory that the numbers of a prompt take while they are folded."""
    learned = _VECTOR_BYTES if prompt.classes is not None else _CONTEXT_BYTES
    sketched = 0 if prompt.sketch is None else prompt.sketch.means.size
    return learned * prompt.learned_numbers + _CONTEXT_BYTES * sketched


def features_to_bytes(features: FloatArray) -> bytes:
    """Encode class features (C, E) for the registry: little-endian float32."""
    return features.astype(_STORED_FLOAT, copy=False).tobytes()
