"""One linear separator per label, from one covariance that all labels share.

The separator of a label is the discriminant of the images that have it against all images,

    w_c = inv(S_a) @ (m_c - m),   S_a = (1 - a) S + a tr(S) / E I,

with the mean m_c of the images of the label, and mean m and covariance S of all images, shrunk
towards a multiple of the identity (Friedman 1989, equation 18). It has the direction of ridge
regression on the label (Hastie, Tibshirani and Friedman 2009, exercise 4.2). Other labels of the
images are part of S, so that a separator does not follow what a label usually occurs with.
"""

from dataclasses import dataclass

import numpy as np

from prompt_serve.types import BoolArray, DoubleArray, FloatArray


@dataclass(frozen=True)
class LabelStatistics:
    """Moments of the training images, from which separators for any shrinkage follow cheaply."""

    mean: DoubleArray  # (E,)
    offsets: DoubleArray  # (C, E) from the mean to that of each label; 0 without images of it
    eigenvalues: DoubleArray  # (E,) of the covariance
    eigenvectors: DoubleArray  # (E, E), in columns
    separable: BoolArray  # (C,) False where no image, or every image, has the label


def label_statistics(features: FloatArray, labels: BoolArray) -> LabelStatistics:
    """Compute the moments of images (N, E) with labels (N, C)."""
    wide = features.astype(np.float64)
    mean = wide.mean(axis=0)
    centered = wide - mean
    counts = labels.sum(axis=0)  # (C,)
    eigenvalues, eigenvectors = np.linalg.eigh(centered.T @ centered / len(wide))
    return LabelStatistics(
        mean=mean,
        offsets=labels.T.astype(np.float64) @ centered / np.maximum(counts, 1)[:, np.newaxis],
        eigenvalues=eigenvalues.clip(min=0.0),
        eigenvectors=eigenvectors,
        separable=(counts > 0) & (counts < len(labels)),
    )


def separators(statistics: LabelStatistics, shrinkage: float) -> DoubleArray:
    """Return separators (C, E) of unit length; zero where a label is not separable.

    Args:
        statistics: of the training images.
        shrinkage: a, from 0 (exclusive) to 1.
    """
    eigenvalues = statistics.eigenvalues
    least = max(float(eigenvalues.mean()), 1e-12)
    spread = (1.0 - shrinkage) * eigenvalues + shrinkage * least
    rotated = statistics.offsets @ statistics.eigenvectors / spread
    vectors = rotated @ statistics.eigenvectors.T * statistics.separable[:, np.newaxis]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: DoubleArray = vectors / np.where(lengths > 0.0, lengths, 1.0)
    return unit
