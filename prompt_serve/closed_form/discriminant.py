"""Linear discriminant analysis with a shrunk covariance, as class vectors without a bias.

The classes are Gaussians with means m_c and one covariance S that all share; the log posterior of
an image x is then linear (Hastie, Tibshirani and Friedman 2009, equation 4.10):

    x @ w_c + b_c   with   w_c = inv(S_a) @ m_c   and   b_c = -1/2 m_c @ inv(S_a) @ m_c

With fewer images than dimensions S cannot be inverted, so it is shrunk towards a multiple of the
identity: ``S_a = (1 - a) S + a tr(S) / E I`` (Friedman 1989, equation 18). ``a`` comes from
cross-validation. Class priors are left out: the folder sizes say nothing about later images.
"""

from dataclasses import dataclass

import numpy as np

from prompt_serve.types import DoubleArray, FloatArray, IntArray

_BIAS_RIDGE = 0.02
_LEAST_SPREAD = 1e-3  # of the total variance, where the classes have no spread of their own


@dataclass(frozen=True)
class ClassStatistics:
    """Moments of the training images, from which vectors for any shrinkage follow cheaply."""

    means: DoubleArray  # (C, E)
    eigenvalues: DoubleArray  # (E,) of the pooled covariance within classes
    eigenvectors: DoubleArray  # (E, E), in columns
    mean_variance: float  # tr(S) / E
    bias_direction: DoubleArray  # (E,): x @ bias_direction is close to 1 for training images


def class_statistics(features: FloatArray, labels: IntArray, n_classes: int) -> ClassStatistics:
    """Compute class means and the pooled covariance within classes.

    Args:
        features: (N, E), unit length along E.
        labels: (N,); every class has at least one image.
        n_classes: C.
    """
    wide = features.astype(np.float64)
    means = class_means(wide, labels, n_classes)
    residuals = wide - means[labels]
    eigenvalues, eigenvectors = np.linalg.eigh(residuals.T @ residuals / len(wide))
    width = wide.shape[1]
    # One image per class leaves no spread within classes; a share of the total stands in for it.
    least = _LEAST_SPREAD * float(wide.var(axis=0).sum()) / width
    second_moment = wide.T @ wide / len(wide)
    ridge = _BIAS_RIDGE * np.trace(second_moment) / width * np.eye(width)
    return ClassStatistics(
        means=means,
        eigenvalues=eigenvalues.clip(min=0.0),
        eigenvectors=eigenvectors,
        mean_variance=max(float(eigenvalues.sum()) / width, least, 1e-12),
        bias_direction=np.linalg.solve(second_moment + ridge, wide.mean(axis=0)),
    )


def discriminant_vectors(statistics: ClassStatistics, shrinkage: float) -> DoubleArray:
    """Class vectors (C, E) of the discriminant, centered over the classes.

    The bias is folded into the vectors along ``bias_direction``. Subtracting the mean over classes
    changes every score of an image alike, hence no probability.

    Args:
        statistics: of the training images.
        shrinkage: a, from 0 (exclusive) to 1.
    """
    spread = (1.0 - shrinkage) * statistics.eigenvalues + shrinkage * statistics.mean_variance
    projected = statistics.means @ statistics.eigenvectors  # (C, E)
    weights = (projected / spread) @ statistics.eigenvectors.T
    bias = -0.5 * (weights * statistics.means).sum(axis=1)  # (C,)
    vectors = weights + np.outer(bias - bias.mean(), statistics.bias_direction)
    centered: DoubleArray = vectors - vectors.mean(axis=0)
    return centered


def class_means(features: DoubleArray, labels: IntArray, n_classes: int) -> DoubleArray:
    """Mean image features (C, E) per class."""
    sums = np.zeros((n_classes, features.shape[1]))
    np.add.at(sums, labels, features)
    means: DoubleArray = sums / np.bincount(labels, minlength=n_classes)[:, np.newaxis]
    return means
