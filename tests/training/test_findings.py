"""What is said about a task: each finding where it holds, and only there."""

from pathlib import Path

import pytest

from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.findings import findings
from prompt_serve.training.without_torch.evaluation import Evaluation, ZeroShotComparison
from tests.drawings import draw_dataset


def comparison(
    accuracy: float = 0.9, zero_shot: float = 0.3, per_class: tuple[float, ...] = (0.9,) * 4
) -> ZeroShotComparison:
    def measured(share: float) -> Evaluation:
        return Evaluation(images=200, accuracy=share, per_class=per_class, calibration_error=0.0)

    return ZeroShotComparison(zero_shot=measured(zero_shot), prompt=measured(accuracy))


def found(root: Path, backbone: str = "ViT-B-16/openai", **measured: object) -> str:
    comparisons = {"cross-validation": comparison(**measured)}  # type: ignore[arg-type]
    return "\n".join(findings(read_dataset(root), comparisons, backbone))


def test_a_sound_task_has_no_findings(tmp_path: Path) -> None:
    assert found(draw_dataset(tmp_path, train=6)) == ""


def test_few_images_and_low_recall_name_the_classes(tmp_path: Path) -> None:
    text = found(draw_dataset(tmp_path, train=3), per_class=(0.9, 0.1, 0.9, 0.0))
    assert "Fewer than 5 training images: blue, green, red, yellow." in text
    assert "Hardly recognized (cross-validation): green 10%, yellow 0%." in text


@pytest.mark.parametrize(
    ("source", "copy", "kind"),
    [
        ("train/blue/00.png", "train/green/copy.png", "in two classes"),
        ("train/blue/00.png", "test/blue/copy.png", "in train and test"),
        ("train/blue/00.png", "train/blue/copy.png", "twice in a class"),
    ],
)
def test_equal_images_are_found(tmp_path: Path, source: str, copy: str, kind: str) -> None:
    root = draw_dataset(tmp_path, train=6, test=6)
    (root / copy).write_bytes((root / source).read_bytes())
    assert f"Equal images {kind}: 1 (" in found(root)


def test_zero_shot_as_good_and_a_trial_backbone_are_told(tmp_path: Path) -> None:
    text = found(draw_dataset(tmp_path, train=6), "embedded", zero_shot=0.88)
    assert "zero-shot, 88.0%" in text
    assert "Backbone 'embedded' is a small one" in text
