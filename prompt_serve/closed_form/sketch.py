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
from prompt_serve.closed_form.folds import MOST_FOLDS, stratified_folds
from prompt_serve.prompts.class_vectors import ImageSketch
from prompt_serve.prompts.quantized_tensor import QuantizedTensor, quantized_bytes
from prompt_serve.types import DoubleArray, FloatArray, IntArray

MOST_BYTES = 1024
REJECTED = 0.05  # share of the training images, out of fold
_CLASS_BITS, _TASK_BITS = 2, 1


@dataclass(frozen=True, kw_only=True)
class LearnedSketch:
    """Sketch as the prompt file stores it, with its threshold."""

    encoding: ImageSketch
    unlike_below: float  # a cosine; an image below it is unlike the training images


def sketch_images(
    features: FloatArray, labels: IntArray, n_classes: int, *, seed: int
) -> LearnedSketch:
    """Sketch the training images of a task.

    Args:
        features: (N, E), unit length along E.
        labels: (N,), from 0 to C - 1.
        n_classes: C.
        seed: of the folds that the threshold comes from.
    """
    cosines = held_out_similarities(features, labels, n_classes, seed=seed)
    known = cosines[np.isfinite(cosines)]
    n_groups, bits = _size(n_classes, features.shape[1])
    return LearnedSketch(
        encoding=_rounded_means(features, _groups(labels, n_groups), n_groups, bits),
        unlike_below=float(np.quantile(known, REJECTED)) if len(known) else -1.0,
    )


def held_out_similarities(
    features: FloatArray, labels: IntArray, n_classes: int, *, seed: int
) -> DoubleArray:
    """Return the cosine (N,) of each training image to the sketch of those in other folds.

    It is NaN for an image that is in no fold. See ``sketch_images`` for the arguments.
    """
    n_groups, bits = _size(n_classes, features.shape[1])
    groups = _groups(labels, n_groups)
    folds = stratified_folds(labels, seed=seed)
    cosines = np.full(len(labels), np.nan)
    for fold in range(MOST_FOLDS):
        held_out = folds == fold
        if held_out.any() and not held_out.all():
            others = _rounded_means(features[~held_out], groups[~held_out], n_groups, bits)
            cosines[held_out] = others.similarities(features[held_out])
    return cosines


def sketch_bytes(n_classes: int, width: int) -> int:
    """Return the bytes of the sketch of C classes, of features of width E, in a prompt file."""
    n_groups, bits = _size(n_classes, width)
    return quantized_bytes((n_groups, width), bits)


def _size(n_classes: int, width: int) -> tuple[int, int]:
    """Return the number of means and the bits per number."""
    if n_classes * mean_bytes(width) <= MOST_BYTES:
        return n_classes, _CLASS_BITS
    return 1, _TASK_BITS


def _groups(labels: IntArray, n_groups: int) -> IntArray:
    """Return the mean that each image belongs to: that of its class, or the only one."""
    return labels if n_groups > 1 else np.zeros_like(labels)


def mean_bytes(width: int) -> float:
    """Bytes of the codes of one class mean of E numbers."""
    return width * _CLASS_BITS / 8


def _rounded_means(features: FloatArray, groups: IntArray, n_groups: int, bits: int) -> ImageSketch:
    means = class_means(features.astype(np.float64), groups, n_groups)  # (K, E)
    levels = normal_levels(bits)
    scaled = means / means.std(axis=1, keepdims=True).clip(min=1e-12)
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, scaled).astype(np.uint8)
    return ImageSketch(means=QuantizedTensor(indices=codes, codebook=levels.astype(np.float16)))
