"""What is said about a task: each finding where it holds, and only there."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.prompts.prompt_file import from_bytes, to_bytes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.findings import findings, with_findings
from prompt_serve.training.train import train_prompt
from prompt_serve.training.without_torch.evaluation import (
    Evaluation,
    ZeroShotComparison,
    evaluate,
)
from tests.drawings import draw_dataset


def comparison(
    accuracy: float = 0.9,
    zero_shot: float = 0.3,
    per_class: tuple[float, ...] = (0.9,) * 4,
    predicted: tuple[int, ...] = (50,) * 4,
    images: int = 200,
) -> ZeroShotComparison:
    def measured(share: float) -> Evaluation:
        return Evaluation(
            images=images,
            accuracy=share,
            per_class=per_class,
            calibration_error=0.0,
            predicted=predicted,
        )

    return ZeroShotComparison(zero_shot=measured(zero_shot), prompt=measured(accuracy))


def found(root: Path, train_accuracy: float | None = None, **measured: object) -> str:
    comparisons = {"cross-validation": comparison(**measured)}  # type: ignore[arg-type]
    return "\n".join(findings(read_dataset(root), comparisons, train_accuracy=train_accuracy))


def test_a_sound_task_has_no_findings(tmp_path: Path) -> None:
    assert found(draw_dataset(tmp_path, train=6), train_accuracy=0.95) == ""


def test_few_images_and_low_recall_name_the_classes(tmp_path: Path) -> None:
    text = found(
        draw_dataset(tmp_path, train=3),
        per_class=(0.9, 0.1, 0.0, 0.0),
        predicted=(150, 40, 10, 0),
    )
    assert "Fewer than 5 training images: blue, green, red, yellow." in text
    assert "Hardly recognized (cross-validation): green 10%, red 0%." in text
    assert "Never predicted (cross-validation): yellow." in text


@pytest.mark.parametrize(
    ("source", "copy", "kind"),
    [
        ("train/blue/00.png", "train/green/copy.png", "in two classes"),
        ("train/blue/00.png", "test/blue/copy.png", "in train and test"),
        ("train/blue/00.png", "val/blue/copy.png", "in train and val"),
        ("val/red/00.png", "test/red/copy.png", "in val and test"),
        ("train/blue/00.png", "train/blue/copy.png", "twice in a class"),
    ],
)
def test_equal_images_are_found(tmp_path: Path, source: str, copy: str, kind: str) -> None:
    root = draw_dataset(tmp_path, train=6, val=6, test=6)
    (root / copy).write_bytes((root / source).read_bytes())
    assert f"Equal images {kind}: 1 (" in found(root)


@pytest.mark.parametrize(
    "name",
    [b"\xff\xfe.png", b"caf\xe9.png", "größer.png".encode(), b"a" * 200 + b".png", b'<b>&".png'],
)
def test_names_of_files_that_are_not_unicode_can_be_stored(
    tiny_backbone: Backbone, tmp_path: Path, name: bytes
) -> None:
    root = draw_dataset(tmp_path, train=2)
    copied = (root / "train/blue/00.png").read_bytes()
    (root / "train/blue" / os.fsdecode(name)).write_bytes(copied)
    dataset = read_dataset(root)
    result = train_prompt(tiny_backbone, dataset, make_config(method="class-vectors", shots=0))
    prompt = with_findings(result, dataset).prompt
    (warning,) = [text for text in prompt.metrics["warnings"] if "Equal" in text]
    assert "Equal images twice in a class: 1 (" in warning
    assert from_bytes(to_bytes(prompt)).metrics["warnings"] == prompt.metrics["warnings"]


def test_zero_shot_as_good_is_told_where_something_was_learned(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path, train=6)
    assert "zero-shot, 88.0%" in found(root, zero_shot=0.88)
    same = {"val": comparison(zero_shot=0.9)}
    assert findings(read_dataset(root), same, learned=False) == ()


# Wilson's 95 % intervals of 90 %: 85.1 % to 93.4 % of 200 images, 59.6 % to 98.2 % of 10.
@pytest.mark.parametrize(
    ("images", "test", "is_told"),
    [(200, 0.7, True), (200, 0.78, True), (200, 0.84, False), (200, 0.9, False), (200, 1.0, True),
     (10, 0.5, False), (10, 0.1, True)],
)  # fmt: skip
def test_test_images_that_tell_another_story_are_told(
    tmp_path: Path, images: int, test: float, is_told: bool
) -> None:
    dataset = read_dataset(draw_dataset(tmp_path, train=6))
    parts = {
        "cross-validation": comparison(images=images),
        "test": comparison(accuracy=test, zero_shot=0.0, images=images),
    }
    assert ("differ by more than chance" in "\n".join(findings(dataset, parts))) == is_told


@pytest.mark.parametrize(
    ("images", "held_out", "train", "is_told"),
    [(200, 0.62, 0.99, True), (200, 0.7, 0.95, True), (200, 0.8, 1.0, False),
     (200, 0.75, 0.9, False), (200, 0.9, None, False), (10, 0.7, 0.95, True),
     (10, 0.6, 0.82, False)],
)  # fmt: skip
def test_training_images_that_are_recognized_far_better_are_told(
    tmp_path: Path, images: int, held_out: float, train: float | None, is_told: bool
) -> None:
    root = draw_dataset(tmp_path, train=6)
    text = found(root, train_accuracy=train, accuracy=held_out, images=images)
    assert ("far better" in text) == is_told


def test_the_prompt_file_keeps_the_findings(tiny_backbone: Backbone, colors: Path) -> None:
    dataset = read_dataset(colors)
    config = make_config(method="class-vectors", bits=1, shots=1)
    plain = train_prompt(tiny_backbone, dataset, config)
    told = with_findings(plain, dataset)
    metrics, evaluation = told.prompt.metrics, told.comparisons["test"].prompt
    low, high = metrics["test"]["interval"]
    assert low <= evaluation.accuracy <= high
    assert high - low > 0.01
    kept = [tuple(pair) for pair in metrics["test"]["confusions"]]
    assert kept == list(evaluation.confusions[:3])
    assert set(metrics.get("warnings", [])) <= set(told.notes)
    assert metrics["train_accuracy"] == pytest.approx(told.train_accuracy, abs=1e-3)
    assert from_bytes(to_bytes(told.prompt)).metrics == metrics
    assert "interval" not in plain.prompt.metrics["test"]


def test_confusions_and_predictions_are_counted() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    predicted = np.array([1, 1, 0, 1, 2, 0, 0, 0])
    found = evaluate(np.eye(3, dtype=np.float32)[predicted], labels)
    assert found.confusions == ((2, 0, 3), (0, 1, 2), (1, 2, 1))
    assert found.predicted == (4, 3, 1)
    assert found.interval[0] < found.accuracy == 2 / 8 < found.interval[1]


def test_the_facts_of_a_thousand_classes_stay_small(tmp_path: Path) -> None:
    """Every class is confused with every other, has a long name and few images."""
    names = tuple(f"class {index:03} {'x' * 90}" for index in range(1000))
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1000), 20)
    scores = rng.random((len(labels), 1000), dtype=np.float32)
    measured = evaluate(scores, labels)
    dataset = read_dataset(draw_dataset(tmp_path, train=2))
    items = tuple(replace(dataset.train.items[0], label=label) for label in range(1000))
    many = replace(dataset, train=replace(dataset.train, class_names=names, items=items))
    both = ZeroShotComparison(zero_shot=measured, prompt=measured)
    notes = findings(many, {"cross-validation": both, "test": both}, train_accuracy=1.0)
    assert len(notes) >= 4
    assert max(map(len, notes)) < 600
    assert len(measured.confusions) == 10
