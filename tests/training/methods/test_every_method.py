"""Every method learns: on base classes, in drawing styles of four vendors, tested on a fifth.

Text methods on the embedded backbone, methods that prompt the image tower on the small ViT: the
loss falls, the unseen style is classified better than by the template, and the file says the same
as what was measured.
"""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.learned_vs_zero_shot import emoji_folder
from prompt_serve.prompts.prompt_file import from_bytes, to_bytes
from prompt_serve.training.class_sets import halves
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.feature_provider import image_data
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.evaluate import class_features_of, evaluate_prompt
from prompt_serve.training.methods import METHODS
from prompt_serve.training.train import train_prompt

# Of each kind one in every run of the tests, with its epochs: whole, low rank, codebook, both
# towers, pruned.
IN_EVERY_RUN = {"coop": 10, "dip": 25, "qcoop": 25, "maple": 6, "adapt": 9}
LEARNING = [
    pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.long)
    for name, method in METHODS.items()
    if method.learner
]
# What takes long learns less: the network of CoCoOp runs the text tower for every image.
SHORT: dict[str, dict[str, Any]] = {"cocoop": {"epochs": 3, "batch_size": 8}}
IMAGE_METHODS = {"epochs": 15}


@pytest.fixture(scope="module")
def base() -> Split:
    return halves(read_dataset(emoji_folder()))[0]


@pytest.fixture(scope="module")
def kept_features(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return FeatureCache(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def backbones() -> dict[bool, Backbone]:
    """By whether the image tower is to be prompted."""
    return {False: load_backbone("embedded"), True: load_backbone("embedded-vit")}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_it_learns_and_its_file_says_the_same(
    name: str, base: Split, kept_features: FeatureCache, backbones: dict[bool, Backbone]
) -> None:
    as_pixels = METHODS[name].prompts_images(make_config(method=name).settings)
    backbone = backbones[as_pixels]
    settings = IMAGE_METHODS if as_pixels else SHORT.get(name, {"epochs": 25})
    rate = METHODS[name].learning_rate if as_pixels else max(METHODS[name].learning_rates)
    if name in IN_EVERY_RUN:
        settings = {"epochs": IN_EVERY_RUN[name]}
    config = make_config(method=name, views=0, learning_rate=rate, **settings)
    result = train_prompt(backbone, base, config, cache=kept_features)
    test = result.comparisons["test"]
    print(f"{name}: {test.zero_shot.accuracy:.1%} -> {test.prompt.accuracy:.1%}")
    assert result.history[-1].loss < result.history[0].loss
    assert test.prompt.accuracy > test.zero_shot.accuracy
    assert all(record.idk for record in result.history)
    stored = from_bytes(to_bytes(result.prompt))
    assert base.test is not None
    images = image_data(base.test, backbone, as_pixels=as_pixels, cache=kept_features)
    assert evaluate_prompt(stored, backbone, images) == test.prompt
    without = replace(stored, text=None, image=None, templates=("a photo of a {}.",))
    if stored.text is not None and name != "cocoop":
        changed = class_features_of(stored, backbone) - class_features_of(without, backbone)
        assert abs(changed).max() > 1e-3
