"""Facts that a report is made from: predictions of a task on labeled images, as plain arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from prompt_serve.calibration import expected_calibration_error
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.scoring import calibrated
from prompt_serve.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class EvaluationFacts:
    """A task, and its scores on N images of C classes.

    Where only probabilities are known, their logarithms at temperature 1 serve as logits.
    """

    task: str
    method: str
    backbone: str
    part: str  # of the dataset, such as "test"
    class_names: tuple[str, ...]  # C
    labels: IntArray  # (N,), N >= 1
    logits: FloatArray  # (N, C), before the temperature
    paths: Sequence[Path]  # N image files
    payload_bytes: int  # learned numbers in the prompt file
    file_bytes: int | None = None
    temperature: float = 1.0
    unknown_below: float = 0.0  # a probability
    similarities: FloatArray | None = None  # (N,) cosines to the nearest direction of the sketch
    unlike_below: float = -1.0  # a cosine
    zero_shot_accuracy: float | None = None  # of the class names alone, on the same images
    notes: Sequence[str] = ()  # warnings and remarks, shown at the top
    left_out: Sequence[str] | None = None  # what was not evaluated, a line each; None: not known
    names: Sequence[str] | None = None  # N names of the images; None: those of their files

    def __post_init__(self) -> None:
        shape, expected = self.logits.shape, (len(self.labels), len(self.class_names))
        if shape != expected or not len(self.labels) == len(self.paths) >= 1:
            raise ValueError(
                f"There are logits of shape {shape}, {len(self.labels)} labels, "
                f"{len(self.paths)} paths and {len(self.class_names)} class names; expected "
                f"logits (N, C) of N images with a label and a path each, and C names."
            )

    @classmethod
    def of_prompt(
        cls,
        prompt: Prompt,
        *,
        part: str,
        labels: IntArray,
        logits: FloatArray,
        paths: Sequence[Path],
        features: FloatArray | None = None,
        similarities: FloatArray | None = None,
        file_bytes: int | None = None,
        zero_shot_accuracy: float | None = None,
        notes: Sequence[str] = (),
        left_out: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> "EvaluationFacts":
        """Return the facts of a prompt, with its temperature, thresholds and sketch.

        Args:
            prompt: of C classes.
            part: of the dataset, such as "test".
            labels: (N,).
            logits: (N, C), before the temperature.
            paths: N image files.
            features: (N, E) of unit length, for the sketch; None where they are not known.
            similarities: (N,) cosines to the sketch, where there are no ``features``.
            file_bytes: size of the prompt file.
            zero_shot_accuracy: of the class names alone, on the same images.
            notes: warnings and remarks.
            left_out: what was not evaluated, a line each.
            names: N names of the images; None: those of their files.
        """
        if prompt.sketch is not None and features is not None:
            similarities = prompt.sketch.similarities(features)
        return cls(
            task=prompt.name,
            method=prompt.method,
            backbone=prompt.backbone.id,
            part=part,
            class_names=prompt.class_names,
            labels=labels,
            logits=logits,
            paths=paths,
            payload_bytes=prompt.payload_bytes,
            file_bytes=file_bytes,
            temperature=prompt.temperature,
            unknown_below=prompt.unknown_below,
            similarities=similarities,
            unlike_below=prompt.unlike_below,
            zero_shot_accuracy=zero_shot_accuracy,
            notes=notes,
            left_out=left_out,
            names=names,
        )

    @property
    def images(self) -> int:
        """Number of images N."""
        return len(self.labels)

    @cached_property
    def predicted(self) -> IntArray:
        """Predicted labels (N,); of equal logits the first class counts."""
        return np.asarray(self.logits.argmax(axis=1))

    @cached_property
    def right(self) -> BoolArray:
        """(N,) True where the prediction is right."""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def confidence(self) -> FloatArray:
        """Probabilities (N,) of the predicted classes."""
        return np.asarray(self._probabilities.max(axis=1))

    @cached_property
    def unlike(self) -> BoolArray:
        """(N,) True where an image is unlike the training images, by the sketch."""
        if self.similarities is None:
            return np.zeros(self.images, dtype=np.bool_)
        return self.similarities < self.unlike_below

    @cached_property
    def unknown(self) -> BoolArray:
        """(N,) True where the service answers with "unknown"."""
        return (self.confidence < np.float32(self.unknown_below)) | self.unlike

    @cached_property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1."""
        return expected_calibration_error(self._probabilities, self.labels)

    @cached_property
    def _probabilities(self) -> FloatArray:
        return calibrated(self.logits, self.temperature)  # (N, C)
