"""Views for training are cut from images that are decoded large enough for the smallest crop."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prompt_serve.preprocess import DECODED_SIDES, Preprocessing
from prompt_serve.training.data.augment import CROPS, Augmentation, _random_box, decoded_side
from prompt_serve.training.data.features import CACHE_VERSION, feature_key

FULL = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
SCALED = replace(FULL, decoding="scaled")
KINDS: Sequence[Augmentation] = ("crops", "light")


@pytest.mark.parametrize("augmentation", KINDS)
@pytest.mark.parametrize("ratio", [0.5, 0.75, 1.0, 1.5, 2.4])
def test_the_smallest_crop_has_as_many_pixels_as_the_plain_view(
    rng: np.random.Generator, augmentation: Augmentation, ratio: float
) -> None:
    side = decoded_side(SCALED, 4, augmentation)
    assert side is not None
    width, height = max(side, round(side * ratio)), max(side, round(side / ratio))

    boxes = [_random_box(width, height, rng, CROPS[augmentation]) for _ in range(300)]

    smallest = min(min(right - left, lower - top) for left, top, right, lower in boxes)
    assert smallest >= DECODED_SIDES * 32 - 1  # rounded


@pytest.mark.parametrize("augmentation", KINDS)
def test_plain_views_need_less_and_full_decoding_stays_full(augmentation: Augmentation) -> None:
    assert decoded_side(SCALED, 0, augmentation) == DECODED_SIDES * 32
    assert decoded_side(FULL, 0, augmentation) is None
    assert decoded_side(FULL, 3, augmentation) is None


def test_cached_features_of_full_decoding_stay_and_scaled_ones_are_kept_apart() -> None:
    def key(preprocessing: Preprocessing) -> str:
        encoder: Any = SimpleNamespace(
            ref=SimpleNamespace(fingerprint="f"), preprocessing=preprocessing, runtime=""
        )
        return feature_key(encoder, ["a", "b"], views=0, seed=0)

    before = {k: v for k, v in asdict(FULL).items() if k != "decoding"}
    document = {
        "cache_version": CACHE_VERSION,
        "fingerprint": "f",
        "preprocessing": before,
        "images": ["a", "b"],
        "views": 0,
        "seed": 0,
    }
    assert key(FULL) == hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    assert key(SCALED) != key(FULL)
