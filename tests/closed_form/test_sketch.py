"""The sketch of a task's images tells images of another kind apart."""

import numpy as np
import pytest

from prompt_serve.closed_form.sketch import sketch_images
from prompt_serve.scoring import unit
from prompt_serve.types import FloatArray
from tests.closed_form.test_discriminant import clusters


@pytest.mark.parametrize(("classes", "sketched"), [(4, 4), (40, 1)])
def test_images_of_another_kind_are_rejected(
    rng: np.random.Generator, classes: int, sketched: int
) -> None:
    features, labels = clusters(rng, classes=classes, per_class=30, width=256)
    features = unit(features + np.float32(0.1))  # all images of the task have it in common
    foreign = unit(rng.normal(size=(200, 256)).astype(np.float32))
    train = np.arange(len(labels)) % 2 == 0

    sketch = sketch_images(features[train], labels[train], classes, seed=0)

    directions = sketch.encoding.directions()

    def rejected(images: FloatArray) -> float:
        return float(((images @ directions.T).max(axis=1) < sketch.unlike_below).mean())

    assert len(directions) == sketched
    assert rejected(foreign) > 0.95
    assert rejected(features[~train]) < 0.12
