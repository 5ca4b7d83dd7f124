"""Relative learning rates: one rate moves the context of every method by about the same share."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prompt_serve.training.batched_loop import fit_batched
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.data.image_batches import ImageBatches, ImageData, image_batches
from prompt_serve.training.data.pixels import PixelSet
from prompt_serve.training.loop import Run, fit
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.base import Contexts
from tests.training.test_batched_loop import NAMES, TOLERANCE, features_of
from tests.training.trained import numbers_of

RATE = 1e-3
N_IMAGES = 8  # one batch, so that the measured batches and the step see the same images
WHOLE: list[dict[str, Any]] = [
    {"method": "coop"},
    {"method": "coop", "n_ctx": 7, "init": "random"},
    {"method": "coop", "depth": 2},
    {"method": "coop", "class_specific": True},
    {"method": "qcoop", "bits": 8},
    {"method": "kgcoop"},
    {"method": "promptsrc"},
    {"method": "vpt", "n_ctx": 3},
    {"method": "ivlp"},
]
FACTORS: list[dict[str, Any]] = [
    {"method": "dip"},
    {"method": "dip", "rank": 3},
    {"method": "dip", "depth": 2},
    {"method": "dip", "n_ctx": 9, "rank": 2, "frozen_init": False},
    {"method": "dip", "branch": "image", "n_ctx": 5},
    {"method": "maple"},
    {"method": "dip-maple", "projection_rank": 8},
    {"method": "qmaple", "bits": 8},
]


def name_of(settings: dict[str, Any]) -> str:
    return "-".join(map(str, settings.values()))


def config_of(settings: dict[str, Any]) -> TrainConfig:
    return make_config(
        {"epochs": 4, "batch_size": N_IMAGES, "step_unit": "relative", "weight_decay": 0.0}
        | settings
    )


def images_for(config: TrainConfig) -> ImageData:
    if not METHODS[config.method].prompts_images(config.settings):
        return features_of(1, N_IMAGES, 1)
    pixels = np.random.default_rng(0).integers(
        0, 256, size=(N_IMAGES, 1, 32, 32, 3), dtype=np.uint8
    )
    return PixelSet(pixels=pixels, labels=np.arange(N_IMAGES) % 4)


def blocks(contexts: Contexts) -> list[Tensor]:
    return [
        block.detach().clone()
        for tower in (contexts.text, contexts.image)
        for block in (tower.context, *tower.deeper)
        if block is not None
    ]


def movements_of_a_step(backbone: Backbone, config: TrainConfig) -> list[float]:
    """Take one step by hand where all classes are equally likely; return each block's movement."""
    run = Run(backbone, NAMES, config, learning_rate=RATE)
    images: ImageBatches = image_batches(images_for(config), run.towers)
    run.scale_steps(images)
    contexts = run.learner.contexts()
    before = blocks(contexts)
    every = torch.arange(N_IMAGES)
    _, logits = run.scores(
        images.features(every, torch.zeros_like(every), contexts.image), contexts.text
    )
    # The gradient of cross-entropy at equal probabilities is 1 / C minus the one-hot label.
    target = torch.nn.functional.one_hot(images.labels, len(NAMES))
    cotangent = (1.0 / len(NAMES) - target) / N_IMAGES
    logits.backward(cotangent)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for group in run.optimizer.param_groups:
            for parameter in group["params"]:
                parameter -= RATE * group["scale"] * parameter.grad
    after = blocks(run.learner.contexts())
    return [float((b - a).norm() / a.norm()) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("settings", WHOLE, ids=name_of)
def test_a_step_on_vectors_moves_each_block_by_the_rate(
    tiny_backbone: Backbone, settings: dict[str, Any]
) -> None:
    moved = movements_of_a_step(tiny_backbone, config_of(settings))
    # Codebooks round what moves; the others are exact to float32.
    tolerance = 0.5 if "bits" in settings else 1e-2
    assert moved == pytest.approx([RATE] * len(moved), rel=tolerance)


@pytest.mark.parametrize("settings", FACTORS, ids=name_of)
def test_a_step_on_factors_moves_each_block_about_as_far(
    tiny_backbone: Backbone, settings: dict[str, Any]
) -> None:
    moved = movements_of_a_step(tiny_backbone, config_of(settings))
    # On average over starts it is the rate; absolute rates differ a thousandfold here.
    assert min(moved) > RATE / 4
    assert max(moved) < 4 * RATE


@pytest.mark.parametrize("settings", [{"method": "coop"}, {"method": "dip"}], ids=name_of)
def test_the_temperature_of_the_backbone_does_not_matter(
    tiny_backbone: Backbone, settings: dict[str, Any]
) -> None:
    before = movements_of_a_step(tiny_backbone, config_of(settings))
    clip = deepcopy(tiny_backbone.clip)
    with torch.no_grad():
        clip.logit_scale -= np.log(10.0)
    warmer = replace(tiny_backbone, clip=clip)
    assert movements_of_a_step(warmer, config_of(settings)) == pytest.approx(before, rel=1e-2)


def test_a_balanced_change_starts_small(tiny_backbone: Backbone) -> None:
    run = Run(tiny_backbone, NAMES, config_of({"method": "dip", "rank": 2}), learning_rate=RATE)
    context = run.folded().text.context
    assert context is not None
    change = (context - run.words).norm() / run.words.norm()
    assert 0.005 < float(change) < 0.05  # init_std is 0.02


def test_measuring_leaves_the_random_numbers_and_the_values_alone(tiny_backbone: Backbone) -> None:
    config = config_of({"method": "dip", "dropout": 0.5})
    run = Run(tiny_backbone, NAMES, config, learning_rate=RATE)
    state = run.generator.get_state()
    values = [p.detach().clone() for p in run.learner.parameters()]
    run.scale_steps(image_batches(images_for(config), run.towers))
    assert torch.equal(run.generator.get_state(), state)
    for before, parameter in zip(values, run.learner.parameters(), strict=True):
        assert torch.equal(before, parameter)
        assert parameter.grad is None


def test_one_class_has_no_gradient_to_measure(tiny_backbone: Backbone) -> None:
    config = config_of({"method": "coop"})
    run = Run(tiny_backbone, ("cat",), config, learning_rate=RATE)
    one = FeatureSet(features=features_of(1, 8, 1).features, labels=np.zeros(8, dtype=np.int64))
    run.scale_steps(image_batches(one, run.towers))
    assert [group["scale"] for group in run.optimizer.param_groups] == [1.0]


def test_batched_runs_end_where_they_would_alone(tiny_backbone: Backbone) -> None:
    configs = [
        config_of({"method": "dip", "seed": seed, "batch_size": 16, "rank": seed})
        for seed in (1, 2)
    ]
    trains = [features_of(config.seed) for config in configs]
    together = fit_batched(tiny_backbone, NAMES, trains, [None, None], configs, [0.05, 0.02])
    for config, train, rate, ours in zip(configs, trains, [0.05, 0.02], together, strict=True):
        alone = fit(tiny_backbone, NAMES, train, None, config, learning_rate=rate)
        assert np.abs(numbers_of(ours) - numbers_of(alone)).max() < TOLERANCE
        assert alone.history[-1].loss < alone.history[0].loss
