"""The default choice: judged by held-out images, smallest of what is as good."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.features import FeatureCache, image_features
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.selection.by_cross_validation import (
    select_by_cross_validation,
    smallest_within_one_standard_error,
)
from prompt_serve.training.without_torch.outcome import Extras
from tests.drawings import draw_dataset

CONFIG = make_config(method="zero-shot", shots=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return FeatureCache(tmp_path_factory.mktemp("features"))


def test_class_vectors_are_chosen_and_use_every_image(
    tiny_backbone: Backbone, colors: Path, cache: FeatureCache
) -> None:
    selection = select_by_cross_validation(
        tiny_backbone, read_dataset(colors), CONFIG, max_seconds=0, cache=cache
    )
    prompt, comparisons = selection.result.prompt, selection.result.comparisons
    assert prompt.method == "class-vectors"
    assert prompt.classes is not None
    assert prompt.sketch is not None
    assert selection.result.images["train"] == 80
    validated = comparisons["cross-validation"]
    assert validated.prompt.images == 80
    assert validated.prompt.accuracy > validated.zero_shot.accuracy + 0.2
    # The file's scores: those that the choice was made by.
    (chosen,) = [row for row in selection.candidates if row.chosen]
    assert chosen.val_accuracy == validated.prompt.accuracy
    assert chosen.size_bytes == prompt.payload_bytes
    assert abs(comparisons["test"].prompt.accuracy - validated.prompt.accuracy) < 0.15
    (skipped,) = [row for row in selection.candidates if row.skipped]
    assert skipped.method == "qcoop"
    assert "--max-seconds" in skipped.skipped


def test_test_images_change_nothing_and_the_seed_gives_the_same_bytes(
    tiny_backbone: Backbone, colors: Path, cache: FeatureCache
) -> None:
    split = read_dataset(colors)
    without = replace(split, test=None)
    first, second = (
        select_by_cross_validation(tiny_backbone, images, CONFIG, max_seconds=0, cache=cache)
        for images in (split, without)
    )
    a, b = (replace(found.result.prompt, metrics={}) for found in (first, second))
    assert to_bytes(a) == to_bytes(b)


def test_a_budget_that_nothing_fits_leaves_zero_shot(
    tiny_backbone: Backbone, colors: Path, cache: FeatureCache
) -> None:
    selection = select_by_cross_validation(
        tiny_backbone, read_dataset(colors), CONFIG, max_bytes=10, max_seconds=0, cache=cache
    )
    assert selection.result.prompt.method == "zero-shot"
    assert {row.method for row in selection.candidates if row.skipped} == {
        "class-vectors",
        "qcoop",
    }


def test_a_small_budget_takes_fewer_bits(
    tiny_backbone: Backbone, colors: Path, cache: FeatureCache
) -> None:
    wide = select_by_cross_validation(
        tiny_backbone, read_dataset(colors), CONFIG, max_seconds=0, cache=cache
    ).result.prompt
    narrow = select_by_cross_validation(
        tiny_backbone,
        read_dataset(colors),
        CONFIG,
        max_bytes=wide.payload_bytes - 1,
        max_seconds=0,
        cache=cache,
    ).result.prompt
    assert wide.training["bits"] == 4
    assert narrow.training["bits"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(
    "shared", [{}, {"learning_rate": "auto", "augmentation": "auto", "epochs": 3}], ids=str
)
def test_an_open_vocabulary_asks_for_a_prompt(
    tiny_backbone: Backbone, colors: Path, cache: FeatureCache, shared: dict[str, Any]
) -> None:
    selection = select_by_cross_validation(
        tiny_backbone,
        read_dataset(colors),
        CONFIG.replace(**shared),
        open_vocabulary=True,
        max_seconds=0,
        cache=cache,
    )
    assert selection.result.prompt.method in ("qcoop", "zero-shot")
    assert selection.result.prompt.classes is None
    assert {row.method for row in selection.candidates} == {"zero-shot", "qcoop"}
    assert not any(row.skipped for row in selection.candidates)


def test_one_class_is_refused_with_the_way_out(tiny_backbone: Backbone, tmp_path: Path) -> None:
    root = draw_dataset(tmp_path, train=3)
    split = read_dataset(root)
    one = replace(
        split.train,
        class_names=("blue",),
        items=tuple(item for item in split.train.items if item.label == 0),
    )
    with pytest.raises(ConfigInvalid, match="Add a folder of images that do not show it"):
        select_by_cross_validation(tiny_backbone, replace(split, train=one), CONFIG)


@pytest.mark.parametrize(
    ("options", "bits"),
    [({}, 4), ({"max_bytes": 100}, 2), ({"max_bytes": 60}, 1), ({"max_bytes": 5}, None),
     ({"extras": Extras(sketch=False)}, 4)],
)  # fmt: skip
def test_single_images_give_class_means_and_a_note(
    tiny_backbone: Backbone, tmp_path: Path, options: dict[str, Any], bits: int | None
) -> None:
    split = read_dataset(draw_dataset(tmp_path, train=1, test=6))
    result = select_by_cross_validation(tiny_backbone, split, CONFIG, **options).result
    prompt = result.prompt
    assert result.notes[0].startswith("Every class has a single image")
    expected = "zero-shot" if bits is None else "class-vectors"
    assert expected in result.notes[-1]
    assert list(result.comparisons) == ["test"]
    assert prompt.payload_bytes <= options.get("max_bytes", 1000)
    if bits is None:
        assert prompt.method == "zero-shot"
        return
    assert prompt.training["bits"] == bits
    assert (prompt.sketch is None) == ("extras" in options)
    # The features of the only images, less what all have in common.
    means = image_features(split.train, tiny_backbone).plain.astype(np.float64)
    means -= means.mean(axis=0)
    assert prompt.classes is not None
    vectors = prompt.classes.class_features()[0].astype(np.float64)
    vectors -= vectors.mean(axis=0)
    cosines = (means * vectors).sum(axis=1)
    cosines /= np.linalg.norm(means, axis=1) * np.linalg.norm(vectors, axis=1)
    assert cosines.min() > {4: 0.95, 2: 0.8, 1: 0.5}[bits]


def test_prompts_are_not_chosen_without_an_image_to_leave_out(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    split = read_dataset(draw_dataset(tmp_path, train=1))
    with pytest.raises(ConfigInvalid, match="every class has a single image"):
        select_by_cross_validation(tiny_backbone, split, CONFIG, open_vocabulary=True)


def test_the_smallest_of_what_is_as_good_is_taken() -> None:
    rng = np.random.default_rng(0)
    best = (rng.random(400) < 0.9).astype(float)
    few_differ = best.copy()
    few_differ[np.flatnonzero(best == 1)[:3]] = 0.0
    few_differ[np.flatnonzero(best == 0)[:2]] = 1.0
    clearly_worse = best.copy()
    clearly_worse[:60] = 0.0

    def chosen(correct: list[np.ndarray], sizes: list[int]) -> int:
        return smallest_within_one_standard_error(correct, sizes, [0.5] * len(sizes))

    assert chosen([best, few_differ], [1000, 100]) == 1
    assert chosen([best, clearly_worse], [1000, 100]) == 0
    assert chosen([best, best], [100, 1000]) == 0
    # Written out: the mean difference of clearly_worse exceeds its own standard error.
    difference = best - clearly_worse
    assert difference.mean() > difference.std(ddof=1) / np.sqrt(400)
