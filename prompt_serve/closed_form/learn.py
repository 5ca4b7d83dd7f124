"""From image features to class vectors and a sketch, in closed form: about a second, no torch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from prompt_serve.closed_form.codes import row_codes
from prompt_serve.closed_form.cross_validation import OutOfFold, Settings, cross_validate
from prompt_serve.closed_form.sketch import sketch_bytes, sketch_images
from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.class_vectors import ClassVectors, ImageSketch
from prompt_serve.prompts.quantized_tensor import StoredTensor, quantized_bytes
from prompt_serve.types import DoubleArray, FloatArray, HalfArray, IntArray

PLAIN_BITS = 16  # float16 numbers, no codebook
_TEMPERATURES = (1e-3, 1e3)  # bounds of the prompt file


@dataclass(frozen=True, kw_only=True)
class LearnedClasses:
    """Class vectors with everything that belongs to them in a prompt file."""

    classes: ClassVectors
    temperature: float
    sketch: ImageSketch
    unlike_below: float
    shrinkage: float
    text_factor: float
    # Scores of held-out images, by rounded vectors; None if each class has one image.
    out_of_fold: OutOfFold | None


def learn_classes(
    features: FloatArray,
    labels: IntArray,
    n_classes: int,
    *,
    logit_scale: float,
    bits: int = 4,
    seed: int = 1,
    text_features: FloatArray | None = None,
) -> LearnedClasses:
    """Learn class vectors from all images of a task.

    Shrinkage, temperature and the weight of the text come from cross-validation; the vectors are
    then learned from all images. What is returned is what the file holds, after rounding.

    Args:
        features: (N, E), unit length along E.
        labels: (N,), every class from 0 to C - 1 at least once.
        n_classes: C, 2 or more.
        logit_scale: of the backbone, 1 / temperature, already exponentiated.
        bits: per number: 1, 2, 4, 8, or 16 for float16.
        seed: of the folds.
        text_features: (C, E) class features of the class names; None leaves the text out.

    Raises:
        ConfigInvalid: there is one class only, or a class without images.
    """
    _check_classes(labels, n_classes)
    settings = cross_validate(features, labels, n_classes, seed=seed, text_features=text_features)
    vectors = settings.vectors(features, labels, n_classes, text_features)
    if settings.out_of_fold is None:
        # Nothing was held out, so nothing says how far scores can be trusted: as far as the text's.
        vectors = logit_scale * vectors / np.linalg.norm(vectors, axis=1).mean()
    classes = encode_vectors(vectors, bits, features)
    _, scale = classes.class_features()
    sketch = sketch_images(features, labels, n_classes, seed=seed)
    held = settings.out_of_fold
    if held is not None:
        logits = rounded_scores(features, labels, n_classes, settings, bits, text_features)
        held = replace(held, logits=logits)
    return LearnedClasses(
        classes=classes,
        temperature=float(np.clip(logit_scale / scale, *_TEMPERATURES)),
        sketch=sketch.encoding,
        unlike_below=sketch.unlike_below,
        shrinkage=settings.shrinkage,
        text_factor=settings.text_factor,
        out_of_fold=held,
    )


def first_that_fits(
    widths: Iterable[int], shape: tuple[int, ...], max_bytes: int, *, sketch: bool = True
) -> int | None:
    """Return the first of some bits per number with which class vectors take few enough bytes.

    Args:
        widths: bits per number, in order of preference.
        shape: (C, E) of the class vectors.
        max_bytes: limit of the tensors in the prompt file.
        sketch: count the sketch.
    """
    sizes = ((bits, stored_bytes(shape, bits, sketch=sketch)) for bits in widths)
    return next((bits for bits, size in sizes if size <= max_bytes), None)


def stored_bytes(shape: tuple[int, ...], bits: int, *, sketch: bool = True) -> int:
    """Return the bytes of class vectors (C, E) and their sketch in a prompt file."""
    n_classes, embed_dim = shape
    rows = 2 * n_classes * embed_dim if bits == PLAIN_BITS else quantized_bytes(shape, bits)
    return rows + 2 * n_classes + (sketch_bytes(n_classes, embed_dim) if sketch else 0)


def encode_vectors(vectors: DoubleArray, bits: int, features: FloatArray) -> ClassVectors:
    """Round class vectors (C, E) to ``bits`` per number, faithful to training features (N, E)."""
    rows, scales = encode_rows(vectors, bits, features)
    return ClassVectors(rows=rows, scales=scales)


def encode_rows(
    vectors: DoubleArray, bits: int, features: FloatArray | DoubleArray
) -> tuple[StoredTensor, HalfArray]:
    """Return the rows (C, E) and scales (C,) of vectors; see ``encode_vectors``."""
    if bits == PLAIN_BITS:
        scales = np.abs(vectors).max(axis=1).clip(min=1e-4)
        rows = (vectors / scales[:, np.newaxis]).astype(np.float16)
        return rows, scales.astype(np.float16)
    wide = features.astype(np.float64)
    return row_codes(vectors, bits, wide.T @ wide / len(wide))


def _check_classes(labels: IntArray, n_classes: int) -> None:
    if n_classes < 2:
        raise ConfigInvalid(
            "There is one class only, so there is nothing to tell apart. Add a class of images "
            "that do not show it."
        )
    counts = np.bincount(labels, minlength=n_classes)
    if missing := np.flatnonzero(counts == 0).tolist():
        raise ConfigInvalid(f"Classes {missing} have no images; every class needs at least one.")


def rounded_scores(
    features: FloatArray,
    labels: IntArray,
    n_classes: int,
    settings: Settings,
    bits: int,
    text_features: FloatArray | None = None,
) -> DoubleArray:
    """Score held-out images by vectors that were learned without them and rounded to ``bits``.

    Args:
        features: (N, E), as in ``learn_classes``.
        labels: (N,).
        n_classes: C.
        settings: from ``cross_validate`` on the same images; its folds are used.
        bits: per number.
        text_features: (C, E), as given to ``cross_validate``.

    Returns:
        Logits (N', C) at temperature 1 of the images that ``settings.out_of_fold`` holds.
    """
    held = settings.out_of_fold
    if held is None:
        raise ValueError("No image was held out, so there are no out-of-fold scores.")
    logits = np.empty_like(held.logits)
    for fold in np.unique(held.folds):
        rows = held.folds == fold
        others = np.ones(len(labels), dtype=bool)
        others[held.images[rows]] = False
        vectors = settings.vectors(features[others], labels[others], n_classes, text_features)
        classes, scale = encode_vectors(vectors, bits, features[others]).class_features()
        logits[rows] = scale * features[held.images[rows]] @ classes.T
    return logits
