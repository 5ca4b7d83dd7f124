"""The protocols on drawn datasets and the tiny backbone: what is learned on, what is tested."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.errors import ConfigInvalid, DatasetInvalid
from prompt_serve.prompts.prompt_file import read_prompt_file
from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.research.protocols.experiment import Experiment
from prompt_serve.research.protocols.protocols import (
    base_to_new,
    few_shot_learning,
    transfer,
)
from prompt_serve.research.protocols.results import (
    FILE_NAME,
    Result,
    StoredPredictions,
    read_results,
)
from prompt_serve.research.protocols.rows import parse_rows
from prompt_serve.research.protocols.summary import CROSS_DATASET, DOMAIN_GENERALIZATION
from prompt_serve.training.class_sets import of_labels, with_classes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.data.dataset import ImageSet
from prompt_serve.training.data.features import image_features
from prompt_serve.training.data.few_shot import few_shot
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.evaluate import evaluate_prompt
from tests.drawings import draw_dataset

SETTINGS = {"epochs": 2, "views": 2}


def make_suite(colors: Path, **domains: Path) -> Suite:
    whole = read_dataset(colors)

    def load(name: str, template: str, shifted: Mapping[str, Path]) -> BenchDataset:
        images = {key: _test(folder) for key, folder in shifted.items()}
        return BenchDataset(name=name, split=whole, template=template, domains=images)

    return Suite(
        name="user",
        datasets={
            "colors": partial(load, "colors", "a photo of a {}.", domains),
            "paints": partial(load, "paints", "{} paint.", {}),
        },
        source="colors",
    )


def _test(folder: Path) -> ImageSet:
    test = read_dataset(folder).test
    assert test is not None
    return test


def experiment(backbone: Backbone, out: Path | None = None, rows: str = "coop") -> Experiment:
    return Experiment(
        backbone=backbone, rows=parse_rows(rows), seeds=(1, 2), settings=SETTINGS, out=out
    )


def prompt_of(out: Path, result: Result) -> Path:
    return out / "runs" / result.run_id / "prompt.safetensors"


def test_base_and_new_are_each_tested_over_their_own_classes(
    tiny_backbone: Backbone, colors: Path, tmp_path: Path
) -> None:
    results = base_to_new(
        make_suite(colors), experiment(tiny_backbone, tmp_path), datasets=["colors"], shots=4
    )

    assert [result.seed for result in results] == [1, 2]
    test = _test(colors)
    for result in results:
        prompt = read_prompt_file(prompt_of(tmp_path, result))
        assert prompt.class_names == ("blue", "green")
        for part, labels in (("base", (0, 1)), ("new", (2, 3))):
            images = of_labels(test, labels)
            renamed = with_classes(prompt, images.class_names, tiny_backbone)
            by_hand = evaluate_prompt(renamed, tiny_backbone, image_features(images, tiny_backbone))
            assert result.accuracy[part] == by_hand.accuracy
            assert result.images[part] == len(images) == 20
        assert result.images["train"] == 8


def test_base_images_are_those_of_the_draw_over_all_classes(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    """CoOp draws over all classes and then cuts; to cut first would draw other images of the
    second class on."""
    root = draw_dataset(tmp_path / "four", train=9, val=6, test=2)
    drawn = few_shot(read_dataset(root), shots=3, seed=1)

    result, _ = base_to_new(
        make_suite(root), experiment(tiny_backbone, tmp_path), datasets=["colors"], shots=3
    )

    learned = json.loads((prompt_of(tmp_path, result).parent / "images.json").read_text())
    assert drawn.val is not None
    for part, images in (("train", drawn.train), ("val", drawn.val)):
        base = [str(item.path) for item in of_labels(images, (0, 1)).items]
        assert learned[part] == base
    assert "test" not in learned


def test_test_images_change_nothing_that_is_learned(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    """Not the learning rate either, which is chosen among three."""
    root = draw_dataset(tmp_path / "one", train=8, test=4)
    prompts = []
    for turn in ("before", "after"):
        (result,) = few_shot_learning(
            make_suite(root),
            replace(
                experiment(tiny_backbone, tmp_path / turn),
                seeds=(1,),
                settings={**SETTINGS, "learning_rate": "auto"},
            ),
            datasets=["colors"],
            shots=[2],
        )
        prompts.append(prompt_of(tmp_path / turn, result).read_bytes())
        accuracy = result.accuracy["test"]
        # The test images of two classes change places.
        (root / "test" / "red").rename(root / "test" / "kept")
        (root / "test" / "blue").rename(root / "test" / "red")
        (root / "test" / "kept").rename(root / "test" / "blue")

    assert prompts[0] == prompts[1]
    assert 0.0 <= accuracy <= 1.0


def test_few_shot_learns_all_classes_from_k_images_each(
    tiny_backbone: Backbone, colors: Path
) -> None:
    results = few_shot_learning(
        make_suite(colors), experiment(tiny_backbone), datasets=["colors"], shots=[1, 2]
    )

    assert [(one.shots, one.images["train"], one.images["val"]) for one in results] == [
        (1, 4, 4),
        (1, 4, 4),
        (2, 8, 8),
        (2, 8, 8),
    ]
    assert {one.classes["test"] for one in results} == {4}
    assert {one.config["shots"] for one in results} == {1, 2}


def test_transfer_reports_one_prompt_under_both_protocols(
    tiny_backbone: Backbone, colors: Path, tmp_path: Path
) -> None:
    suite = make_suite(colors, same=colors)
    run = experiment(tiny_backbone, tmp_path, rows="coop,zero-shot")

    results = transfer(suite, replace(run, seeds=(1,)), shots=2)

    by_run = {(one.protocol, one.method): one for one in results}
    across = by_run["cross-dataset", "coop"]
    domains = by_run["domain-generalization", "coop"]
    assert list(across.accuracy) == ["source", "paints"]
    assert list(domains.accuracy) == ["source", "same"]
    # The same images under the same context: equal whatever they are called.
    assert across.accuracy["source"] == domains.accuracy["source"] == domains.accuracy["same"]
    assert across.accuracy["paints"] == across.accuracy["source"]
    assert prompt_of(tmp_path, across).read_bytes() == prompt_of(tmp_path, domains).read_bytes()


def test_zero_shot_takes_the_sentence_of_each_target(
    tiny_backbone: Backbone, colors: Path, tmp_path: Path
) -> None:
    run = replace(experiment(tiny_backbone, tmp_path, rows="zero-shot"), seeds=(1,))

    (result,) = transfer(make_suite(colors), run, [CROSS_DATASET], shots=2)

    prompt = read_prompt_file(prompt_of(tmp_path, result))
    images = image_features(_test(colors), tiny_backbone)
    for name, template in (("source", "a photo of a {}."), ("paints", "{} paint.")):
        by_hand = evaluate_prompt(replace(prompt, templates=(template,)), tiny_backbone, images)
        stored = StoredPredictions.load(
            tmp_path / "runs" / result.run_id / f"predictions-{name}.npz"
        )
        assert result.accuracy[name] == by_hand.accuracy
        assert (stored.predicted[:, 0] == stored.labels).mean() == pytest.approx(by_hand.accuracy)


def test_the_stored_predictions_are_the_most_probable_classes_in_order(
    tiny_backbone: Backbone, colors: Path, tmp_path: Path
) -> None:
    run = replace(experiment(tiny_backbone, tmp_path), seeds=(1,))

    (result,) = few_shot_learning(make_suite(colors), run, datasets=["colors"], shots=[2])

    stored = StoredPredictions.load(tmp_path / "runs" / result.run_id / "predictions-test.npz")
    assert stored.class_names == ("blue", "green", "red", "yellow")
    assert (np.diff(stored.probabilities, axis=1) <= 0).all()
    assert stored.probabilities.sum(axis=1) == pytest.approx(np.ones(40), abs=2e-3)  # float16
    assert all(
        Path(path).parent.name == stored.class_names[label]
        for path, label in zip(stored.paths, stored.labels, strict=True)
    )


def test_what_is_in_the_run_folder_is_not_learned_again(
    tiny_backbone: Backbone, colors: Path, tmp_path: Path
) -> None:
    notified: list[Result] = []
    suite = make_suite(colors)
    run = replace(experiment(tiny_backbone, tmp_path), on_result=notified.append)
    first = base_to_new(suite, run, datasets=["colors"], shots=2)
    file = tmp_path / FILE_NAME
    lines = file.read_text().splitlines()

    again = base_to_new(suite, run, datasets=["colors"], shots=2)
    assert (len(notified), file.read_text().splitlines()) == (2, lines)
    assert [one.run_id for one in again] == [one.run_id for one in first]

    file.write_text(f"{lines[0]}\n")  # as if it had been stopped after the first
    resumed = base_to_new(suite, run, datasets=["colors"], shots=2)
    assert len(notified) == 3
    assert resumed[1].accuracy == first[1].accuracy
    assert read_results(tmp_path) == tuple(resumed)


def test_a_run_folder_of_other_settings_is_refused(
    tiny_backbone: Backbone, colors: Path, tmp_path: Path
) -> None:
    suite, run = make_suite(colors), experiment(tiny_backbone, tmp_path)
    base_to_new(suite, run, datasets=["colors"], shots=2)
    before = (tmp_path / FILE_NAME).read_bytes()

    with pytest.raises(ConfigInvalid, match=r"(?s)another folder.*epochs was 2, now 3"):
        base_to_new(
            suite, replace(run, settings={**SETTINGS, "epochs": 3}), datasets=["colors"], shots=2
        )
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_dataset_without_test_images_is_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "plain", all=6)

    with pytest.raises(DatasetInvalid, match="no test images"):
        base_to_new(make_suite(root), experiment(tiny_backbone), datasets=["colors"], shots=2)


def test_a_source_without_domains_and_one_without_targets_are_refused(
    tiny_backbone: Backbone, colors: Path
) -> None:
    suite = make_suite(colors)

    with pytest.raises(ConfigInvalid, match="has no domains"):
        transfer(suite, experiment(tiny_backbone), [DOMAIN_GENERALIZATION], shots=2)
    with pytest.raises(ConfigInvalid, match="no dataset beside the source"):
        transfer(suite, experiment(tiny_backbone), [CROSS_DATASET], datasets=["colors"], shots=2)
    with pytest.raises(ConfigInvalid, match="has no dataset 'pets'"):
        base_to_new(suite, experiment(tiny_backbone), datasets=["pets"], shots=2)
