"""The sketch of a task's images tells images of another kind apart."""

import numpy as np
import pytest

from prompt_serve.closed_form.sketch import sketch_images
from tests.closed_form.test_discriminant import clusters


@pytest.mark.parametrize(("classes", "sketched"), [(4, 4), (40, 1)])
def test_images_of_another_kind_are_rejected(
    rng: np.random.Generator, classes: int, sketched: int
) -> None:
    features, labels = clusters(rng, classes=classes, per_class=30, width=256)
    features = features + 0.1  # what all images of the task have in common
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    foreign = rng.normal(size=(200, 256))
    foreign /= np.linalg.norm(foreign, axis=1, keepdims=True)
    train = np.arange(len(labels)) % 2 == 0

    sketch = sketch_images(features[train], labels[train], classes, seed=0)

    def rejected(images: np.ndarray) -> float:
        return float(((images @ sketch.means().T).max(axis=1) < sketch.like_above).mean())

    assert len(sketch.codes) == sketched
    assert rejected(foreign) > 0.95
    assert rejected(features[~train]) < 0.12
