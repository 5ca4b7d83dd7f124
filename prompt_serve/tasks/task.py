"""``Task``: one version of a task, ready to score images."""

import sys
from dataclasses import dataclass
from functools import cached_property

from prompt_serve.prompts.class_vectors import LabelVectors
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.scoring import LabelScores
from prompt_serve.types import FloatArray

_OBJECT_BYTES = 1200  # the objects around the array and the names, and their place in the cache
_POINTER_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Task:
    """Immutable: a request keeps the ``Task`` objects it resolved, whatever is uploaded later."""

    version: str  # sha256 of the prompt file
    class_names: tuple[str, ...]
    class_features: FloatArray  # (C, E), unit length, read-only
    temperature: float = 1.0  # divides the logits before the softmax
    unknown_below: float = 0.0  # a best probability below it means that the image shows no class
    sketch: FloatArray | None = None  # (K, E), unit length: directions of the training images
    unlike_below: float = -1.0  # a cosine to the sketch below it means the same
    label_scores: LabelScores | None = None  # of a multi-label task, in place of the softmax
    image_rows: ImageRows | None = None  # vectors of the image tower, for this task's images

    @classmethod
    def from_prompt(
        cls,
        version: str,
        prompt: Prompt,
        class_features: FloatArray,
        image_rows: ImageRows | None = None,
    ) -> "Task":
        """Combine a prompt with its class features (C, E), which become read-only."""
        class_features.flags.writeable = False
        return cls(
            version=version,
            class_names=prompt.class_names,
            class_features=class_features,
            temperature=prompt.temperature,
            unknown_below=prompt.unknown_below,
            sketch=None if prompt.sketch is None else prompt.sketch.directions(),
            unlike_below=prompt.unlike_below,
            label_scores=prompt.classes.class_features()[1]
            if isinstance(prompt.classes, LabelVectors)
            else None,
            image_rows=image_rows,
        )

    @cached_property
    def size_bytes(self) -> int:
        """Memory that the task takes."""
        names = sum(sys.getsizeof(name) + _POINTER_BYTES for name in self.class_names)
        sketch = 0 if self.sketch is None else self.sketch.nbytes
        scores = 0 if self.label_scores is None else self.label_scores.nbytes
        rows = 0 if self.image_rows is None else self.image_rows.size_bytes
        return self.class_features.nbytes + sketch + scores + rows + names + _OBJECT_BYTES
