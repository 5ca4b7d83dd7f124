"""Class vectors through the training flow: all images, one look at the test part, no new names."""

from dataclasses import replace
from pathlib import Path

import pytest

from prompt_serve.errors import ConfigInvalid, PromptUnsupported
from prompt_serve.prompts.class_vectors import ClassVectors
from prompt_serve.prompts.prompt_file import from_bytes, to_bytes
from prompt_serve.training.class_sets import with_classes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.feature_provider import image_data
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.evaluate import evaluate_prompt
from prompt_serve.training.train import train_prompt, train_prompts
from tests.drawings import draw_dataset


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("parts"), train=8, val=4, test=6)


def test_validation_images_are_learned_from_as_well(tiny_backbone: Backbone, parts: Path) -> None:
    config = make_config(method="class-vectors", shots=0)
    result = train_prompt(tiny_backbone, read_dataset(parts), config)
    assert result.images == {"train": 4 * 12, "test": 4 * 6}
    assert list(result.comparisons) == ["cross-validation", "test"]
    assert result.comparisons["cross-validation"].prompt.images == 4 * 12
    assert result.notes == ()


def test_shots_limit_the_images(tiny_backbone: Backbone, parts: Path) -> None:
    config = make_config(method="class-vectors", shots=3)
    result = train_prompt(tiny_backbone, read_dataset(parts), config)
    assert result.images["train"] == 4 * 3


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_file_measures_what_was_reported(
    tiny_backbone: Backbone, parts: Path, bits: int
) -> None:
    split = read_dataset(parts)
    result = train_prompt(
        tiny_backbone, split, make_config(method="class-vectors", shots=0, bits=bits)
    )
    stored = from_bytes(to_bytes(result.prompt))
    assert isinstance(stored.classes, ClassVectors)
    assert split.test is not None
    again = evaluate_prompt(stored, tiny_backbone, image_data(split.test, tiny_backbone))
    assert again == result.comparisons["test"].prompt


def test_class_vectors_and_prompts_are_trained_side_by_side(
    tiny_backbone: Backbone, parts: Path
) -> None:
    split = read_dataset(parts)
    few = {"epochs": 1, "views": 0, "shots": 4}
    coop, vectors = train_prompts(
        tiny_backbone,
        split,
        [make_config(method="coop", **few), make_config(method="class-vectors", shots=0)],
    )
    alone = train_prompt(tiny_backbone, split, make_config(method="class-vectors", shots=0))
    assert coop.prompt.text is not None
    assert to_bytes(vectors.prompt) == to_bytes(alone.prompt)


def test_new_names_are_refused_with_the_way_out(tiny_backbone: Backbone, parts: Path) -> None:
    config = make_config(method="class-vectors", shots=0)
    prompt = train_prompt(tiny_backbone, read_dataset(parts), config).prompt
    with pytest.raises(PromptUnsupported, match="take no other names"):
        with_classes(prompt, ["cat", "dog"], tiny_backbone)


def test_one_class_is_refused(tiny_backbone: Backbone, parts: Path) -> None:
    split = read_dataset(parts)
    one = replace(
        split.train,
        class_names=("blue",),
        items=tuple(item for item in split.train.items if item.label == 0),
    )
    with pytest.raises(ConfigInvalid, match="one class only"):
        train_prompt(
            tiny_backbone,
            replace(split, train=one, val=None, test=None),
            make_config(method="class-vectors", shots=0),
        )
