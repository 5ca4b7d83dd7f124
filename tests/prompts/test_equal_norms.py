"""Equal norms: unit class features with the probabilities of vectors of any length."""

import numpy as np
import pytest

from prompt_serve.prompts.equal_norms import equal_norms
from prompt_serve.scoring import softmax


@pytest.mark.parametrize(("classes", "width"), [(2, 8), (5, 8), (9, 8), (30, 256)])
def test_probabilities_stay(rng: np.random.Generator, classes: int, width: int) -> None:
    vectors = 20 * rng.normal(size=(classes, width)) * rng.uniform(0.5, 2, size=(classes, 1))
    images = rng.normal(size=(50, width))
    images /= np.linalg.norm(images, axis=1, keepdims=True)

    features, scale = equal_norms(vectors)

    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(
        softmax((scale * images @ features.T).astype(np.float32)),
        softmax((images @ vectors.T).astype(np.float32)),
        atol=1e-3,  # float32 features at scales of some hundreds
    )


def test_more_classes_than_dimensions_keep_the_order_nearly_always(
    rng: np.random.Generator,
) -> None:
    vectors = rng.normal(size=(300, 256))
    images = rng.normal(size=(500, 256))
    features, _ = equal_norms(vectors)
    same = (images @ features.T).argmax(axis=1) == (images @ vectors.T).argmax(axis=1)
    assert same.mean() > 0.95
