"""Views and cached features: equal to recomputed ones, and never stale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prompt_serve.preprocess import Preprocessing, pixels_from_bytes
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.data.augment import (
    CROPS,
    Crop,
    _random_box,
    make_views,
    view_generator,
)
from prompt_serve.training.data.features import (
    FeatureCache,
    extract_features,
    feature_key,
    file_digests,
    image_features,
)
from prompt_serve.training.data.loading import read_dataset
from tests.backbones import write_tiny_backbone
from tests.drawings import draw_dataset, draw_image


def test_plain_features_are_those_of_the_pixels_that_serving_sees(
    colors: Path, tiny_backbone: Backbone
) -> None:
    images = read_dataset(colors).train
    found = image_features(images, tiny_backbone)
    pixels = np.stack(
        [pixels_from_bytes(i.path.read_bytes(), tiny_backbone.preprocessing) for i in images.items]
    )
    expected = tiny_backbone.encode_images(torch.from_numpy(pixels)).numpy()
    assert found.features.shape == (80, 1, tiny_backbone.embed_dim)
    # Rounded to float16 on the way: half a unit in the last place of numbers below one.
    assert np.abs(found.plain - expected).max() < 5e-4
    assert found.labels.tolist() == [item.label for item in images.items]
    assert np.linalg.norm(found.plain, axis=1) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("views", [0, 3])
def test_cached_features_equal_recomputed_ones(
    colors: Path, tiny_backbone: Backbone, tmp_path: Path, views: int
) -> None:
    images, cache = read_dataset(colors).train, FeatureCache(tmp_path)
    without = image_features(images, tiny_backbone, views=views, seed=1)
    cold = image_features(images, tiny_backbone, views=views, seed=1, cache=cache)
    warm = image_features(images, tiny_backbone, views=views, seed=1, cache=cache)
    assert without.features.tobytes() == cold.features.tobytes() == warm.features.tobytes()
    assert len(list(tmp_path.iterdir())) == 1
    # fp16 numbers and a header of numpy's.
    assert next(tmp_path.iterdir()).stat().st_size == 80 * max(views, 1) * 24 * 2 + 128


def test_the_cache_spares_the_image_tower(
    colors: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    images, cache = read_dataset(colors).train, FeatureCache(tmp_path)
    image_features(images, tiny_backbone, cache=cache)
    path = next(tmp_path.iterdir())
    stored = np.load(path)
    np.save(path, stored[::-1])
    marked = image_features(images, tiny_backbone, cache=cache)
    assert np.abs(marked.plain - stored[::-1, 0]).max() < 1e-3


def test_a_damaged_cache_file_is_computed_again(
    colors: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    images, cache = read_dataset(colors).train, FeatureCache(tmp_path)
    good = image_features(images, tiny_backbone, cache=cache)
    path = next(tmp_path.iterdir())
    for damage in (b"", b"nonsense", path.read_bytes()[:-10]):
        path.write_bytes(damage)
        again = image_features(images, tiny_backbone, cache=cache)
        assert again.features.tobytes() == good.features.tobytes()


def test_views_differ_from_each_other_and_with_the_seed(
    colors: Path, tiny_backbone: Backbone
) -> None:
    images = read_dataset(colors).train.with_items(read_dataset(colors).train.items[:3])
    one = image_features(images, tiny_backbone, views=4, seed=1).features
    other = image_features(images, tiny_backbone, views=4, seed=2).features
    for n in range(3):
        stacked = np.concatenate([one[n], other[n]])
        assert len({view.tobytes() for view in stacked}) == 8


def test_a_view_does_not_depend_on_the_order_of_images_or_the_number_of_views(
    colors: Path, tiny_backbone: Backbone
) -> None:
    paths = [item.path for item in read_dataset(colors).train.items][:6]
    digests = file_digests(paths)
    some = extract_features(paths, digests, tiny_backbone, views=2, seed=1)
    more = extract_features(paths[::-1], digests[::-1], tiny_backbone, views=5, seed=1)
    # Batches of another size sum in another order; float16 hides nearly all of it.
    assert np.abs(some.astype(np.float32) - more[::-1, :2].astype(np.float32)).max() < 1e-3


def test_the_key_knows_all_that_features_depend_on(tiny_backbone: Backbone, tmp_path: Path) -> None:
    path = draw_image(tmp_path / "a.png", (1, 2, 3), 0)
    other_weights = load_backbone(str(write_tiny_backbone(tmp_path / "other", seed=1)))
    sharper = replace(
        tiny_backbone,
        settings=replace(
            tiny_backbone.settings,
            preprocessing=replace(tiny_backbone.preprocessing, interpolation="bilinear"),
        ),
    )

    def key(backbone: Backbone = tiny_backbone, views: int = 2, seed: int = 1) -> str:
        return feature_key(backbone, file_digests([path]), views=views, seed=seed)

    keys = [key(), key(other_weights), key(sharper), key(views=3), key(seed=2), key(views=0)]
    assert key(views=0, seed=5) == key(views=0)
    draw_image(path, (1, 2, 4), 0)
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_a_changed_image_misses_the_cache(tmp_path: Path, tiny_backbone: Backbone) -> None:
    images = read_dataset(draw_dataset(tmp_path / "set", all=2)).train
    cache = FeatureCache(tmp_path / "cache")
    before = image_features(images, tiny_backbone, cache=cache).plain
    draw_image(images.items[3].path, (0, 0, 0), 99)
    after = image_features(images, tiny_backbone, cache=cache).plain
    changed = np.abs(before - after).max(axis=1) > 1e-3
    assert changed.tolist() == [n == 3 for n in range(len(images))]


@pytest.mark.parametrize("crop", CROPS.values(), ids=list(CROPS))
def test_random_boxes_keep_torchvisions_bounds(crop: Crop) -> None:
    for index, (width, height) in enumerate([(40, 48), (300, 20), (7, 500), (1, 1), (64, 64)] * 40):
        rng = view_generator("digest", index, 1)
        left, top, right, bottom = _random_box(width, height, rng, crop)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if width == height == 64:
            area, ratio = (right - left) * (bottom - top) / 64**2, (right - left) / (bottom - top)
            assert crop.area[0] * 0.9 < area <= crop.area[1]
            assert crop.ratio[0] * 0.9 < ratio < crop.ratio[1] * 1.1


def test_half_of_the_views_are_flipped() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    image = Image.fromarray(pixels)
    preprocessing = Preprocessing(image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    views = make_views(image, preprocessing, digest="d", views=400, seed=1).astype(float)
    brighter_left = (views[:, :, :8].mean((1, 2, 3)) > views[:, :, 8:].mean((1, 2, 3))).sum()
    brighter_right = (views[:, :, :8].mean((1, 2, 3)) < views[:, :, 8:].mean((1, 2, 3))).sum()
    assert 0.4 < brighter_left / (brighter_left + brighter_right) < 0.6


def test_light_views_are_never_flipped() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    image = Image.fromarray(pixels)
    preprocessing = Preprocessing(image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    views = make_views(
        image, preprocessing, digest="d", views=50, seed=1, augmentation="light"
    ).astype(float)
    assert (views[:, :, :8].mean((1, 2, 3)) < views[:, :, 8:].mean((1, 2, 3))).all()
    assert len({view.tobytes() for view in views}) > 10  # and yet they differ


def test_the_cache_folder_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMPT_SERVE_CACHE", str(tmp_path))
    assert FeatureCache().folder == tmp_path / "features"
    monkeypatch.delenv("PROMPT_SERVE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert FeatureCache().folder == tmp_path / "prompt-serve" / "features"
