"""Encodings that hold image features instead of a context.

    ClassVectors  the class features of a task, one vector per class; an image has one class
    LabelVectors  the same where an image may have several classes or none
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
from prompt_serve.prompts.quantized_tensor import QuantizedTensor, StoredTensor, dequantize
from prompt_serve.scoring import LabelScores, unit
from prompt_serve.types import DoubleArray, FloatArray, HalfArray

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class ClassVectors:
    """Class vectors ``w_c = scales_c * rows_c``: the scores of an image x are ``x @ w_c``."""

    kind: ClassVar[str] = "class_vectors"
    rows: StoredTensor  # (C, E)
    scales: HalfArray  # (C,)

    def __post_init__(self) -> None:
        check_tensor("rows", self.rows, dims=(2,))
        _check_plain("scales of class vectors", self.scales)
        if self.rows.shape[0] < 2 or self.scales.shape != self.rows.shape[:1]:
            raise PromptFileInvalid(
                f"The class vectors have shape {self.rows.shape} and the scales "
                f"{self.scales.shape}; expected (C, E) and (C,), with two classes or more."
            )
        if not (self.scales > 0).all():
            raise PromptFileInvalid("The scales of class vectors must be above zero.")
        if _all_equal(self.rows, self.scales):
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
        return equal_norms(_scaled(self.rows, self.scales))


@dataclass(frozen=True, kw_only=True)
class LabelVectors:
    """Vectors ``w_c = scales_c * rows_c`` of independent labels: an image x has label c with the
    probability ``sigmoid(x @ w_c + offsets_c)``, and is given it from ``thresholds_c`` on."""

    kind: ClassVar[str] = "label_vectors"
    rows: StoredTensor  # (C, E)
    scales: HalfArray  # (C,)
    offsets: HalfArray  # (C,)
    thresholds: HalfArray  # (C,) probabilities

    def __post_init__(self) -> None:
        check_tensor("rows", self.rows, dims=(2,))
        for name in ("scales", "offsets", "thresholds"):
            vector = getattr(self, name)
            _check_plain(f"{name} of label vectors", vector)
            if vector.shape != self.rows.shape[:1]:
                raise PromptFileInvalid(
                    f"The label vectors have shape {self.rows.shape} and the {name} "
                    f"{vector.shape}; expected (C, E) and (C,)."
                )
        if not (self.scales > 0).all():
            raise PromptFileInvalid("The scales of label vectors must be above zero.")
        if not ((self.thresholds > 0) & (self.thresholds < 1)).all():
            raise PromptFileInvalid("The thresholds of label vectors must be between 0 and 1.")
        if _has_zero_row(self.rows):
            raise PromptFileInvalid("A label vector is zero, which has no direction.")

    @property
    def n_classes(self) -> int:
        return int(self.rows.shape[0])

    @property
    def width(self) -> int:
        """Width E of the features."""
        return int(self.rows.shape[1])

    def tensors(self) -> Tensors:
        return {
            "rows": self.rows,
            "scales": self.scales,
            "offsets": self.offsets,
            "thresholds": self.thresholds,
        }

    def options(self) -> dict[str, Any]:
        return {}

    def class_features(self) -> tuple[FloatArray, LabelScores]:
        """Return unit class features F (C, E) and what turns their cosines into probabilities."""
        vectors = _scaled(self.rows, self.scales)
        slopes = np.linalg.norm(vectors, axis=1)  # (C,)
        return (vectors / slopes[:, np.newaxis]).astype(np.float32), LabelScores(
            slopes=slopes.astype(np.float32),
            offsets=self.offsets.astype(np.float32),
            thresholds=self.thresholds.astype(np.float32),
        )


def _scaled(rows: StoredTensor, scales: HalfArray) -> DoubleArray:
    wide = dequantize(rows).astype(np.float64)
    return np.asarray(scales.astype(np.float64)[:, np.newaxis] * wide)


def _all_equal(rows: StoredTensor, scales: HalfArray) -> bool:
    """Return True if all vectors are equal; few of them are in memory at once."""
    first = _part(rows, scales, 0, 1)
    return all(
        (_part(rows, scales, start, start + _ROWS_AT_ONCE) == first).all()
        for start in range(0, rows.shape[0], _ROWS_AT_ONCE)
    )


def _has_zero_row(rows: StoredTensor) -> bool:
    if isinstance(rows, QuantizedTensor):
        return not (rows.codebook != 0)[rows.indices].any(axis=1).all()
    return not rows.any(axis=1).all()


def _part(rows: StoredTensor, scales: HalfArray, start: int, stop: int) -> DoubleArray:
    if isinstance(rows, QuantizedTensor):
        some = rows.codebook[rows.indices[start:stop]]
    else:
        some = rows[start:stop]
    return _scaled(some, scales[start:stop])


def _check_plain(name: str, vector: object) -> None:
    if not isinstance(vector, np.ndarray):
        raise PromptFileInvalid(f"The {name} are quantized; expected float16.")
    check_tensor(name, vector, dims=(1,))


@dataclass(frozen=True, kw_only=True)
class ImageSketch:
    """Directions (K, E) around which the training images lie: one per class, or one in all."""

    kind: ClassVar[str] = "image_sketch"
    means: StoredTensor  # (K, E), of any length

    def __post_init__(self) -> None:
        check_tensor("means", self.means, dims=(2,))
        if _has_zero_row(self.means):
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
) -> ClassVectors | LabelVectors | ImageSketch:
    """Rebuild an encoding of image features from the content of a prompt file.

    Raises:
        PromptFileInvalid: the kind is unknown, or tensors are missing, unexpected or inconsistent.
    """
    if options:
        raise PromptFileInvalid(f"Encoding {kind!r} has no options; the file has {dict(options)}.")
    match kind:
        case ClassVectors.kind:
            return ClassVectors(**exact_tensors(kind, tensors, {"rows", "scales"}))
        case LabelVectors.kind:
            names = {"rows", "scales", "offsets", "thresholds"}
            return LabelVectors(**exact_tensors(kind, tensors, names))
        case ImageSketch.kind:
            return ImageSketch(**exact_tensors(kind, tensors, {"means"}))
    raise PromptFileInvalid(
        f"Unknown encoding {kind!r}; this version reads 'class_vectors' and 'label_vectors' in "
        f"'classes', and 'image_sketch' in 'sketch'. A newer prompt-serve may have written the "
        f"file."
    )
