"""Runs learned in one against the same runs learned alone."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.sequences import plan_sequences
from prompt_serve.scoring import unit
from prompt_serve.training.batched_loop import fit_batched
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.clip.text_tower import PlanVectors
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.loop import Fitted, fit
from tests.training.trained import numbers_of

NAMES = ("cat", "a_very_long_name of-a-dog", "horse", "zebra crossing")
DIP: dict[str, Any] = {"method": "dip", "init_std": 0.3, "learning_rate": 5.0}
COOP: dict[str, Any] = {"method": "coop", "learning_rate": 0.5}
EPOCHS = 6
# Sums may come in another order, 1e-7 a step, which SGD lets grow; then float16 rounds. Measured on
# this backbone: 0. Runs that took each other's batches or gradients differ by 1e-1 and more.
TOLERANCE = 2e-3


def features_of(seed: int, n: int = 40, views: int = 3) -> FeatureSet:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    centers = np.random.default_rng(0).normal(size=(4, 1, 24))
    features = centers[labels] + 0.3 * rng.normal(size=(n, views, 24))
    return FeatureSet(features=unit(features.astype(np.float32)), labels=labels)


def configs_of(*settings: dict[str, Any]) -> list[TrainConfig]:
    return [make_config(epochs=EPOCHS, batch_size=16, **own) for own in settings]


def rate(config: TrainConfig) -> float:
    assert isinstance(config.learning_rate, float)
    return config.learning_rate


def both_ways(
    backbone: Backbone, configs: list[TrainConfig], val: FeatureSet | None
) -> list[tuple[Fitted, Fitted]]:
    trains = [features_of(config.seed) for config in configs]
    rates = [rate(config) for config in configs]
    together = fit_batched(backbone, NAMES, trains, [val] * len(configs), configs, rates)
    alone = [
        fit(backbone, NAMES, train, val, config, learning_rate=rate(config))
        for train, config in zip(trains, configs, strict=True)
    ]
    return list(zip(together, alone, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        [{**DIP, "seed": seed, "dropout": 0.2} for seed in (1, 2, 3)],
        [{**DIP, "rank": 1}, {**DIP, "rank": 3, "learning_rate": 2.0}, {**COOP, "seed": 5}],
        [{**COOP, "noise_std": 0.01, "depth": 2, "seed": seed} for seed in (1, 2)],
        [{**COOP, "class_specific": True, "seed": seed} for seed in (1, 2)],
        [{**DIP, "class_position": "middle", "seed": 1}],
        [{"method": "qcoop", "bits": bits, "learning_rate": 0.5} for bits in (1, 4)],
    ],
    ids=["seeds", "ranks and methods", "deep", "class-specific", "alone", "bits"],
)
def test_each_run_ends_where_it_would_alone(
    tiny_backbone: Backbone, settings: list[dict[str, Any]]
) -> None:
    pairs = both_ways(tiny_backbone, configs_of(*settings), features_of(9, 12, 1))
    for together, alone in pairs:
        ours, theirs = numbers_of(together), numbers_of(alone)
        assert together.template == alone.template
        assert np.abs(ours - theirs).max() < TOLERANCE
        for record, expected in zip(together.history, alone.history, strict=True):
            assert record.loss == pytest.approx(expected.loss, abs=1e-4)
            assert record.learning_rate == expected.learning_rate
            assert record.val_loss == pytest.approx(expected.val_loss, abs=1e-3)
    # They differ among each other by far more.
    rows = [numbers_of(alone) for _, alone in pairs]
    for first, second in itertools.pairwise(rows):
        assert first.shape != second.shape or np.abs(first - second).max() > 0.01


def test_the_tower_gives_each_run_its_own_features(tiny_backbone: Backbone) -> None:
    plan = plan_sequences(
        tiny_backbone.tokenizer, NAMES, "a photo of a {}.", context_length=32, n_ctx=4
    )
    vectors = PlanVectors(plan, tiny_backbone.token_embedding)
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randn(3, 4, 32, generator=generator)
    deeper = torch.randn(3, 4, 32, generator=generator)
    each = [
        tiny_backbone.text_tower(*vectors(context), (own,))
        for context, own in zip(contexts, deeper, strict=True)
    ]
    prefixes = torch.stack([vectors(context)[0] for context in contexts])
    _, suffix, eot = vectors(contexts[0])
    for suffixes in (suffix, suffix.expand(3, -1, -1, -1)):
        together = tiny_backbone.text_tower(prefixes, suffixes, eot, (deeper,))
        torch.testing.assert_close(together, torch.stack(each), atol=1e-6, rtol=0)


def test_validation_images_of_some_runs_only(tiny_backbone: Backbone) -> None:
    configs = configs_of(DIP, {**DIP, "seed": 2})
    trains = [features_of(1), features_of(2)]
    vals = [None, features_of(9, 12, 1)]
    seen: list[tuple[int, int]] = []
    first, second = fit_batched(
        tiny_backbone,
        NAMES,
        trains,
        vals,
        configs,
        [5.0, 5.0],
        on_epoch=lambda index, record: seen.append((record.epoch, index)),
    )
    assert {record.val_accuracy for record in first.history} == {None}
    assert None not in {record.val_accuracy for record in second.history}
    assert seen == [(epoch, index) for epoch in range(EPOCHS) for index in (0, 1)]


def test_what_does_not_fit_together_is_said(tiny_backbone: Backbone) -> None:
    train = features_of(1)

    def stack(*settings: dict[str, Any], trains: list[FeatureSet] | None = None) -> None:
        configs = [make_config(**{"epochs": 2, **own}) for own in settings]
        sets = trains or [train] * len(configs)
        fit_batched(tiny_backbone, NAMES, sets, [None] * len(sets), configs, [1.0] * len(sets))

    with pytest.raises(ConfigInvalid, match=r"epochs differs: 2, 3\n.*") as caught:
        stack(DIP, {**DIP, "epochs": 3, "batch_size": 8})
    assert caught.value.faults[1] == "steps per epoch differs: 1, 5"
    with pytest.raises(ConfigInvalid, match="template differs"):
        stack(DIP, {**DIP, "template": "the {}."})
    with pytest.raises(ConfigInvalid, match="steps per epoch differs: 2, 1"):
        stack(DIP, DIP, trains=[features_of(1, 64), train])
    with pytest.raises(ConfigInvalid, match="'dip' prompts the image tower"):
        stack({**DIP, "branch": "image"})
