"""From a folder to a prompt file: reproducible bytes, better than chance, notes on missing data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest

from prompt_serve.errors import ConfigInvalid, DatasetInvalid
from prompt_serve.prompts.folding import fold_text
from prompt_serve.prompts.probe import TOLERANCE, probe_difference
from prompt_serve.prompts.prompt_file import (
    from_bytes,
    read_prompt_file,
    to_bytes,
    write_prompt_file,
)
from prompt_serve.prompts.quantized_tensor import dequantize
from prompt_serve.scoring import unit
from prompt_serve.training.clip.backbone import Backbone, build_backbone
from prompt_serve.training.clip.source import Source, clip_merges
from prompt_serve.training.config import make_config, with_user_settings
from prompt_serve.training.data.dataset import LabeledImage, Split
from prompt_serve.training.data.features import FeatureCache, FeatureSet, image_features
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.evaluate import class_features_of, evaluate_prompt
from prompt_serve.training.loop import fit
from prompt_serve.training.train import open_dataset, train_prompt, train_prompts
from prompt_serve.training.without_torch.outcome import EpochRecord, TrainingResult
from tests.drawings import draw_dataset

# A random tower hardly listens to its context, so learning takes large steps.
COOP: dict[str, Any] = {
    "method": "coop",
    "learning_rate": 10.0,
    "weight_decay": 0.0,
    "epochs": 25,
    "views": 4,
}
DIP = {**COOP, "method": "dip", "rank": 2, "init_std": 0.3}


@pytest.fixture(scope="session")
def cache_of_colors(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return FeatureCache(tmp_path_factory.mktemp("features"))


def learn(
    backbone: Backbone, folder: Path, cache: FeatureCache | None, **settings: Any
) -> TrainingResult:
    config = make_config(**settings)
    return train_prompt(backbone, read_dataset(folder), config, name="colors", cache=cache)


def test_learning_lifts_accuracy_well_over_chance_and_over_zero_shot(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache
) -> None:
    result = learn(tiny_backbone, colors, cache_of_colors, **COOP, class_specific=True)
    test = result.comparisons["test"]
    assert test.prompt.accuracy >= 0.9
    assert test.prompt.accuracy >= test.zero_shot.accuracy + 0.2
    assert result.images == {"train": 64, "val": 16, "test": 40}
    assert result.notes == ()


@pytest.mark.parametrize("settings", [COOP, DIP], ids=["coop", "dip"])
def test_one_context_for_all_classes_learns_too(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache, settings: dict[str, Any]
) -> None:
    result = learn(tiny_backbone, colors, cache_of_colors, **settings)
    assert result.history[-1].loss < result.history[0].loss - 0.1
    assert result.comparisons["test"].prompt.accuracy > 0.4  # chance is 0.25


def test_the_same_seed_gives_the_same_file(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache, tmp_path: Path
) -> None:
    settings = {**DIP, "dropout": 0.2, "epochs": 4}
    first = to_bytes(learn(tiny_backbone, colors, cache_of_colors, **settings).prompt)
    cold = learn(tiny_backbone, colors, FeatureCache(tmp_path), **settings)
    assert to_bytes(cold.prompt) == first
    assert to_bytes(learn(tiny_backbone, colors, None, **settings).prompt) == first
    other = learn(tiny_backbone, colors, cache_of_colors, **{**settings, "seed": 2})
    assert to_bytes(other.prompt) != first


def test_the_prompt_file_has_the_measured_accuracy(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache, tmp_path: Path
) -> None:
    result = learn(tiny_backbone, colors, cache_of_colors, **DIP)
    write_prompt_file(result.prompt, tmp_path / "colors.safetensors")
    stored = read_prompt_file(tmp_path / "colors.safetensors")
    features = class_features_of(stored, tiny_backbone)
    test = read_dataset(colors).test
    assert test is not None
    measured = evaluate_prompt(stored, tiny_backbone, image_features(test, tiny_backbone))
    assert measured == result.comparisons["test"].prompt
    assert stored.metrics["test"]["accuracy"] == round(measured.accuracy, 4)
    assert probe_difference(stored.probe, features) < TOLERANCE
    assert stored.training["learning_rate"] == 10.0
    assert stored.training["rank"] == 2


def test_test_images_change_nothing_that_is_learned(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache
) -> None:
    split = read_dataset(colors)
    assert split.test is not None
    fewer = replace(split, test=split.test.with_items(split.test.items[:7]))
    config = make_config(**{**DIP, "epochs": 3, "learning_rate": "auto"})
    first = train_prompt(tiny_backbone, split, config, cache=cache_of_colors).prompt
    second = train_prompt(tiny_backbone, fewer, config, cache=cache_of_colors).prompt
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert dequantize(tensor).tobytes() == dequantize(second.tensors[name]).tobytes()  # type: ignore[arg-type]  # no bytes among them
    assert first.temperature == second.temperature


def test_auto_chooses_the_learning_rate_that_validates_best(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache
) -> None:
    records: list[EpochRecord] = []
    config = make_config(**{**COOP, "learning_rate": "auto", "epochs": 4})
    result = train_prompt(
        tiny_backbone,
        read_dataset(colors),
        config,
        cache=cache_of_colors,
        on_epoch=records.append,
    )
    last = [record for record in records if record.epoch == 3]
    assert len(last) == 3
    best = min(last, key=lambda r: (-(r.val_accuracy or 0), r.val_loss or 0))
    assert result.history[-1] == best
    assert result.prompt.training["learning_rate"] in (0.002, 0.01, 0.05)


def test_auto_chooses_the_augmentation_that_validates_best(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache
) -> None:
    records: list[EpochRecord] = []
    config = make_config(**{**COOP, "augmentation": "auto", "epochs": 4})
    dataset = read_dataset(colors)
    result = train_prompt(
        tiny_backbone, dataset, config, cache=cache_of_colors, on_epoch=records.append
    )
    last = [record for record in records if record.epoch == 3]
    assert len({record.loss for record in last}) == 3  # each kind of view is another training set
    best = min(last, key=lambda r: (-(r.val_accuracy or 0), r.val_loss or 0))
    assert result.history[-1] == best
    kind = ("none", "light", "crops")[last.index(best)]
    again = learn(
        tiny_backbone, colors, cache_of_colors, **{**COOP, "augmentation": kind, "epochs": 4}
    )
    assert again.history[-1].loss == best.loss
    # What the file says of itself is what it was learned with; crops are the papers'.
    assert result.prompt.training.get("augmentation", "crops") == kind


def test_augmentation_cannot_be_chosen_without_validation_images(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    root = draw_dataset(tmp_path, all=2)
    with pytest.raises(ConfigInvalid, match="Give none, light or crops"):
        learn(tiny_backbone, root, None, **{**COOP, "shots": 2, "augmentation": "auto"})


def test_no_augmentation_is_the_plain_view(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache
) -> None:
    settings = {**COOP, "epochs": 2}
    none = learn(tiny_backbone, colors, cache_of_colors, **settings, augmentation="none")
    plain = learn(tiny_backbone, colors, cache_of_colors, **{**settings, "views": 0})
    assert [r.loss for r in none.history] == [r.loss for r in plain.history]


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "coop", "class_specific": True},
        {"method": "coop", "n_ctx": 8, "init": "random"},
        {"method": "dip"},
        {"method": "dip", "rank": 4},
        {"method": "qcoop", "bits": 2},
        {"method": "dip", "branch": "image", "n_ctx": 4},
        {"method": "maple"},
        {"method": "adapt"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_the_defaults_for_users_learn_on_a_backbone_that_takes_large_steps(
    tiny_backbone: Backbone,
    colors: Path,
    cache_of_colors: FeatureCache,
    settings: dict[str, Any],
) -> None:
    config = with_user_settings({**settings, "min_steps": 120})
    result = learn(tiny_backbone, colors, cache_of_colors, **config)
    # At the papers' absolute rates DIP and QCoOp do not move here at all.
    assert result.history[-1].loss < 0.97 * result.history[0].loss


def test_zero_shot_learns_nothing(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache
) -> None:
    templates = ("a photo of a {}.", "a {} thing")
    result = learn(tiny_backbone, colors, cache_of_colors, method="zero-shot", templates=templates)
    assert result.prompt.text is None
    assert result.prompt.templates == templates
    assert result.prompt.payload_bytes == 0
    assert result.comparisons["test"].prompt == result.comparisons["test"].zero_shot
    assert result.history == ()


def test_training_continues_without_validation_images_and_notes_it(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    root = draw_dataset(tmp_path, all=2)
    settings = {**COOP, "shots": 2, "epochs": 2}
    result = learn(tiny_backbone, root, None, **settings)
    assert result.comparisons == {}
    assert "no images left to validate on" in result.notes[0]
    assert "no test images" in result.notes[1]
    with pytest.raises(ConfigInvalid, match="there are none"):
        learn(tiny_backbone, root, None, **{**settings, "learning_rate": "auto"})


def test_fewer_images_than_shots_need_an_option(tiny_backbone: Backbone, tmp_path: Path) -> None:
    root = draw_dataset(tmp_path, train=3)
    with pytest.raises(DatasetInvalid, match="fewer than 16 shots"):
        open_dataset(root, tiny_backbone, make_config())
    config = make_config(**{**COOP, "fewer_shots_ok": True, "epochs": 1})
    split = open_dataset(root, tiny_backbone, config)
    notes = train_prompt(tiny_backbone, split, config).notes
    assert "4 classes with fewer than 16 training images." in notes


def test_a_class_name_with_seventy_tokens_is_found_before_anything_is_encoded(
    tiny_backbone: Backbone, colors: Path
) -> None:
    with pytest.raises(DatasetInvalid, match="75 tokens with its template"):
        open_dataset(colors, tiny_backbone, make_config(), rename={"red": " ".join(["red"] * 70)})


def test_many_prompts_are_those_of_single_runs_in_order_with_their_checkpoints(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache, tmp_path: Path
) -> None:
    split = read_dataset(colors)
    common: dict[str, Any] = {"shots": 2, "epochs": 2, "views": 1}
    configs = [
        make_config(method="vpt", **common),
        make_config(**{**COOP, **common, "seed": 2}),
        make_config(method="zero-shot", **common),
        make_config(**{**COOP, **common, "learning_rate": "auto"}),
    ]
    paths = [tmp_path / str(index) for index in range(4)]
    seen: list[tuple[int, int]] = []
    results = train_prompts(
        tiny_backbone,
        split,
        configs,
        names=[f"prompt {index}" for index in range(4)],
        cache=cache_of_colors,
        checkpoints=paths,
        on_epoch=lambda index, record: seen.append((index, record.epoch)),
    )
    for index, (config, result) in enumerate(zip(configs, results, strict=True)):
        single = train_prompt(tiny_backbone, split, config, name=f"prompt {index}")
        assert to_bytes(result.prompt) == to_bytes(single.prompt)
    rates = ("0.002", "0.01", "0.05")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", *(f"3.{r}" for r in rates)]
    assert sorted(seen) == [(0, 0), (0, 1), (1, 0), (1, 1), *[(3, 0)] * 3, *[(3, 1)] * 3]


def test_test_images_are_encoded_after_learning(
    tiny_backbone: Backbone, colors: Path, cache_of_colors: FeatureCache
) -> None:
    split = read_dataset(colors)
    assert split.test is not None
    missing = replace(split, test=split.test.with_items([LabeledImage(Path("nowhere.png"), 0)]))
    records: list[EpochRecord] = []
    config = make_config(**{**COOP, "epochs": 2})
    with pytest.raises(OSError, match=r"nowhere\.png"):
        train_prompt(tiny_backbone, missing, config, cache=cache_of_colors, on_epoch=records.append)
    assert len(records) == 2


@pytest.mark.slow
def test_dip_on_the_geometry_of_vit_b_16_stores_516_numbers_in_1032_bytes(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """The text tower of ViT-B/16 at full size; a small image tower, which DIP never sees."""
    config = open_clip.get_model_config("ViT-B-16")
    assert config is not None
    config["vision_cfg"] = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    backbone = build_backbone(
        Source(
            id="ViT-B-16/geometry",
            name="ViT-B-16",
            model_cfg=config,
            preprocess_cfg={"mean": (0.5,) * 3, "std": (0.5,) * 3},
            merges=clip_merges(),
            read_weights=None,
        )
    )
    features = unit(rng.normal(size=(8, 1, 512)).astype(np.float32))
    train = FeatureSet(features=features, labels=np.arange(8) % 2)
    fitted = fit(backbone, ("cat", "dog"), train, None, make_config(epochs=2), learning_rate=0.02)
    assert fitted.encodings.text is not None
    split = Split(train=read_dataset(draw_dataset(tmp_path, all=1)).train)
    prompt = train_prompt(backbone, split, make_config(shots=1, epochs=1, views=1)).prompt
    data = write_prompt_file(prompt, tmp_path / "dip.safetensors")
    header = int.from_bytes(data[:8], "little")
    assert prompt.learned_numbers == 516
    assert len(data) - 8 - header == prompt.payload_bytes == 1_032
    folded = fold_text(from_bytes(data).text, np.zeros((4, 512), np.float32)).context
    assert folded is not None
    assert folded.shape == (4, 512)
