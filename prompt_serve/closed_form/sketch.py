"""A sketch of a task's images, by which an image of another kind is recognized.

The largest class probability says little about an image that shows none of the classes: a softmax
is sure of something for any image. The cosine between the image and the nearest class mean of the
training images tells far more: images unlike all of them lie outside of every class.

The sketch is the class means, rounded to codes of two bits, or their mean at one bit where the
class means would take too many bytes. The threshold is the cosine that 5 % of the training images
stay below when they are left out of the means.
"""

from dataclasses import dataclass

import numpy as np

from prompt_serve.closed_form.codes import normal_levels
from prompt_serve.closed_form.discriminant import class_means
from prompt_serve.closed_form.folds import MOST_FOLDS, NEVER_HELD_OUT, stratified_folds
from prompt_serve.scoring import unit
from prompt_serve.types import FloatArray, HalfArray, IntArray

MOST_BYTES = 1024
REJECTED = 0.05  # share of the training images, out of fold
_CLASS_BITS, _TASK_BITS = 2, 1


@dataclass(frozen=True, kw_only=True)
class ImageSketch:
    """Mean directions as codes, and the threshold."""

    codes: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]  # (K, E)
    codebook: HalfArray
    like_above: float  # a cosine; an image below it is unlike the training images

    def means(self) -> FloatArray:
        """Unit mean directions (K, E)."""
        return unit(self.codebook.astype(np.float32)[self.codes])


def sketch_images(
    features: FloatArray, labels: IntArray, n_classes: int, *, seed: int
) -> ImageSketch:
    """Sketch training images (N, E) with their labels (N,)."""
    per_class = n_classes * features.shape[1] * _CLASS_BITS <= 8 * MOST_BYTES
    groups = labels if per_class else np.zeros_like(labels)
    n_groups = n_classes if per_class else 1
    bits = _CLASS_BITS if per_class else _TASK_BITS
    folds = stratified_folds(labels, seed=seed)
    cosines = np.full(len(labels), np.nan)
    for fold in range(MOST_FOLDS):
        held_out = folds == fold
        if held_out.any() and not held_out.all():
            codes, codebook = _coded_means(features[~held_out], groups[~held_out], n_groups, bits)
            means = unit(codebook.astype(np.float32)[codes])
            cosines[held_out] = (features[held_out] @ means.T).max(axis=1)
    codes, codebook = _coded_means(features, groups, n_groups, bits)
    held_out = folds != NEVER_HELD_OUT
    threshold = float(np.quantile(cosines[held_out], REJECTED)) if held_out.any() else -1.0
    return ImageSketch(codes=codes, codebook=codebook, like_above=threshold)


def _coded_means(
    features: FloatArray, groups: IntArray, n_groups: int, bits: int
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], HalfArray]:
    means = class_means(features.astype(np.float64), groups, n_groups)  # (K, E)
    levels = normal_levels(bits)
    scaled = means / means.std(axis=1, keepdims=True).clip(min=1e-12)
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, scaled).astype(np.uint8)
    return codes, levels.astype(np.float16)
