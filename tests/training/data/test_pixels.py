"""Pixels in memory and pixels decoded on demand are equal; a changed image is refused."""

from pathlib import Path

import numpy as np
import pytest

from prompt_serve.errors import DatasetInvalid
from prompt_serve.preprocess import Preprocessing
from prompt_serve.training.data.dataset import ImageSet
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.data.pixels import DecodedOnDemand, PixelSet, image_pixels
from tests.drawings import COLORS, draw_dataset, draw_image

PREPROCESSING = Preprocessing(image_size=24, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return read_dataset(draw_dataset(tmp_path, all=3)).train


def pixels(images: ImageSet, *, views: int, memory_bytes: int, seed: int = 1) -> PixelSet:
    return image_pixels(
        images, PREPROCESSING, views=views, seed=seed, memory_bytes=memory_bytes, workers=2
    )


@pytest.mark.parametrize("views", [0, 3])
def test_a_set_that_does_not_fit_has_the_same_pixels(images: ImageSet, views: int) -> None:
    kept = pixels(images, views=views, memory_bytes=2**20)
    on_demand = pixels(images, views=views, memory_bytes=1000)
    assert isinstance(kept.pixels, np.ndarray)
    assert isinstance(on_demand.pixels, DecodedOnDemand)
    assert kept.pixels.shape == on_demand.pixels.shape == (12, max(views, 1), 24, 24, 3)
    assert (kept.labels == on_demand.labels).all()
    rng = np.random.default_rng(0)
    chosen, of_views = rng.integers(0, 12, 9), rng.integers(0, max(views, 1), 9)
    assert (kept.pixels[chosen, of_views] == on_demand.pixels[chosen, of_views]).all()
    assert on_demand.pixels[chosen, of_views].dtype == np.uint8
    assert (kept.plain(10, 8) == on_demand.plain(10, 8)).all()
    assert len(kept.plain(10, 8)) == 2


def test_exactly_the_bytes_allowed_are_kept(images: ImageSet) -> None:
    size = 12 * 2 * 24 * 24 * 3
    assert isinstance(pixels(images, views=2, memory_bytes=size).pixels, np.ndarray)
    assert isinstance(pixels(images, views=2, memory_bytes=size - 1).pixels, DecodedOnDemand)


def test_views_follow_the_seed(images: ImageSet) -> None:
    index = np.arange(12), np.zeros(12, dtype=np.int64)
    one, other, again = (
        pixels(images, views=2, memory_bytes=0, seed=seed).pixels[index] for seed in (1, 2, 1)
    )
    assert (one == again).all()
    assert (one != other).any()


def test_an_image_that_changes_or_goes_is_refused_by_name(images: ImageSet) -> None:
    on_demand = pixels(images, views=0, memory_bytes=0)
    first, second = images.items[0].path, images.items[1].path
    draw_image(first, COLORS["red"], seed=99)
    second.unlink()
    with pytest.raises(DatasetInvalid, match=f"{first.name} has changed since training began"):
        on_demand.plain(0, 1)
    with pytest.raises(DatasetInvalid, match=f"{second.name} could be read when training began"):
        on_demand.plain(1, 1)
    assert on_demand.plain(2, 1).shape == (1, 24, 24, 3)
