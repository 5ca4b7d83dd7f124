"""Encodings that hold image features instead of a context.

    ClassVectors  the class features of a task, one vector per class
    ImageSketch   mean features of the training images, to recognize images of another kind

Both belong to a task that was learned from images alone. The text tower plays no part in them, so
names of classes that were not learned cannot be added.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.encodings import Tensors, check_tensor, exact_tensors
from prompt_serve.prompts.equal_norms import equal_norms
from prompt_serve.prompts.quantized_tensor import StoredTensor, dequantize
from prompt_serve.scoring import unit
from prompt_serve.types import FloatArray, HalfArray


@dataclass(frozen=True, kw_only=True)
class ClassVectors:
    """Class vectors ``w_c = scales_c * rows_c``: the scores of an image x are ``x @ w_c``."""

    kind: ClassVar[str] = "class_vectors"
    rows: StoredTensor  # (C, E)
    scales: HalfArray  # (C,)

    def __post_init__(self) -> None:
        check_tensor("rows", self.rows, dims=(2,))
        if not isinstance(self.scales, np.ndarray):
            raise PromptFileInvalid("The scales of class vectors are quantized; expected float16.")
        check_tensor("scales", self.scales, dims=(1,))
        if self.rows.shape[0] < 2 or self.scales.shape != self.rows.shape[:1]:
            raise PromptFileInvalid(
                f"The class vectors have shape {self.rows.shape} and the scales "
                f"{self.scales.shape}; expected (C, E) and (C,), with two classes or more."
            )
        if not (self.scales > 0).all():
            raise PromptFileInvalid("The scales of class vectors must be above zero.")
        vectors = self._vectors()
        if not np.ptp(vectors, axis=0).any():
            raise PromptFileInvalid("All class vectors are equal, so they tell no class apart.")

    @property
    def n_classes(self) -> int:
        return int(self.rows.shape[0])

    @property
    def width(self) -> int:
        """Width E of the features."""
        return int(self.rows.shape[1])

    def tensors(self) -> Tensors:
        return {"rows": self.rows, "scales": self.scales}

    def options(self) -> dict[str, Any]:
        return {}

    def class_features(self) -> tuple[FloatArray, float]:
        """Return unit class features (C, E) and the scale of their scores (``equal_norms``)."""
        return equal_norms(self._vectors())

    def _vectors(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        rows = dequantize(self.rows).astype(np.float64)
        return np.asarray(self.scales.astype(np.float64)[:, np.newaxis] * rows)


@dataclass(frozen=True, kw_only=True)
class ImageSketch:
    """Directions (K, E) around which the training images lie: one per class, or one in all."""

    kind: ClassVar[str] = "image_sketch"
    means: StoredTensor  # (K, E), of any length

    def __post_init__(self) -> None:
        check_tensor("means", self.means, dims=(2,))
        if not np.abs(dequantize(self.means)).max(axis=1).all():
            raise PromptFileInvalid("A mean of the image sketch is zero, which has no direction.")

    @property
    def width(self) -> int:
        """Width E of the features."""
        return int(self.means.shape[1])

    def tensors(self) -> Tensors:
        return {"means": self.means}

    def options(self) -> dict[str, Any]:
        return {}

    def directions(self) -> FloatArray:
        """Unit means (K, E)."""
        return unit(dequantize(self.means).astype(np.float32))

    def similarities(self, features: FloatArray) -> FloatArray:
        """Return the cosine (N,) of each image (N, E) to the nearest direction."""
        nearest: FloatArray = (features @ self.directions().T).max(axis=1)
        return nearest


def image_encoding_from(
    kind: str, tensors: Mapping[str, Any], options: Mapping[str, Any]
) -> ClassVectors | ImageSketch:
    """Rebuild an encoding of image features from the content of a prompt file.

    Raises:
        PromptFileInvalid: the kind is unknown, or tensors are missing, unexpected or inconsistent.
    """
    if options:
        raise PromptFileInvalid(f"Encoding {kind!r} has no options; the file has {dict(options)}.")
    match kind:
        case ClassVectors.kind:
            return ClassVectors(**exact_tensors(kind, tensors, {"rows", "scales"}))
        case ImageSketch.kind:
            return ImageSketch(**exact_tensors(kind, tensors, {"means"}))
    raise PromptFileInvalid(
        f"Unknown encoding {kind!r}; this version reads 'class_vectors' in 'classes' and "
        f"'image_sketch' in 'sketch'. A newer prompt-serve may have written the file."
    )
