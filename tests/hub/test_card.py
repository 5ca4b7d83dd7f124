"""The model card: metadata for the Hub, text that shows names as they are."""

from dataclasses import replace
from html import unescape
from typing import Any

import pytest
import yaml

from prompt_serve.hub.card import CLASSES_SHOWN, GENERATED, escaped, model_card
from prompt_serve.prompts.prompt_file import Prompt, read_prompt_file
from tests.golden import path_of

pytest.importorskip("huggingface_hub")

ODD_NAMES = [
    "<script>alert(1)</script>",
    "a | b",
    "![x](http://host/x.png)",
    "`code` *bold* _italic_ ~~gone~~",
    "---\nlicense: mit",
    "café 猫 🐈",
    "$x^2$ \\ & &amp;",
    "# heading",
    "@somebody https://host",
]
METRICS: dict[str, Any] = {
    "val": {"images": 8, "accuracy": 0.875, "zero_shot_accuracy": 0.5, "calibration_error": 0.04},
    "test": {"images": 40, "accuracy": 0.9, "zero_shot_accuracy": 0.525, "per_class": [0.9, None]},
    "images": {"train": 16, "val": 8, "test": 40},
    "warnings": ["few images"],
    "odd": {"accuracy": "high"},
}


def prompt(file: str = "calibrated", **fields: Any) -> Prompt:
    return replace(read_prompt_file(path_of(file)), **fields)


def card_of(task: Prompt, **options: Any) -> tuple[dict[str, Any], str]:
    text = model_card(
        task,
        file_name="pets.safetensors",
        file_bytes=1432,
        version="ab" * 32,
        repo_id="me/pets",
        **options,
    )
    assert text.startswith("---\n")
    metadata, body = text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(metadata), body


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("calibrated", "zero-shot-image-classification"),
        ("low_rank", "zero-shot-image-classification"),
        ("zero_shot", "zero-shot-image-classification"),
        ("class_vectors_4", "image-classification"),
        ("label_vectors_4", "image-classification"),
    ],
)
def test_metadata_say_what_kind_of_model_it_is(name: str, tag: str) -> None:
    task = prompt(name)

    metadata, body = card_of(task, base_model="timm/clip", license_id="mit")

    assert metadata["pipeline_tag"] == tag
    assert metadata["library_name"] == "prompt-serve"
    assert metadata["base_model"] == "timm/clip"
    assert metadata["license"] == "mit"
    assert {"prompt-serve", "clip", task.method} <= set(metadata["tags"])
    assert GENERATED in body
    assert "prompt-serve pull me/pets --file pets.safetensors" in body
    assert 'prompt_serve.load("pets.safetensors"' in body


def test_what_was_measured_is_in_table_and_metadata() -> None:
    metadata, body = card_of(prompt(metrics=METRICS))

    assert "| val | 87.5% | 50.0% | 4.0% |" in body
    assert "| test | 90.0% | 52.5% |  |" in body
    assert "odd" not in body
    results = metadata["model-index"][0]["results"]
    measured = {one["dataset"]["split"]: one["metrics"][0]["value"] for one in results}
    assert measured == {"val": 0.875, "test": 0.9}
    assert metadata["metrics"] == ["accuracy"]


@pytest.mark.parametrize("metrics", [{}, {"test": 3}, {"x": {"accuracy": None}}, {"a": []}])
def test_without_measures_there_is_no_table(metrics: dict[str, Any]) -> None:
    metadata, body = card_of(prompt(metrics=metrics))

    assert "Measured" not in body
    assert "model-index" not in metadata


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_text_wherever_they_stand(name: str) -> None:
    task = prompt(name=name, class_names=(name, "dog"), probe=prompt().probe[:2])
    plain, _ = card_of(prompt(class_names=("cat", "dog"), probe=prompt().probe[:2]))

    metadata, body = card_of(task)

    assert set(metadata) == set(plain)
    assert unescape(escaped(name)) == " ".join(name.split())
    assert f"2: {escaped(name)}, dog" in body
    assert f"# {escaped(name)}\n" in body
    for markup in "<|`*![$@":
        assert markup not in escaped(name)


@pytest.mark.parametrize("n", [2, CLASSES_SHOWN, CLASSES_SHOWN + 1, 1500])
def test_a_long_list_of_classes_is_shortened(n: int) -> None:
    names = tuple(f"class{index}" for index in range(n))
    task = prompt("zero_shot", class_names=names, probe=prompt().probe[:1].repeat(n))

    _, body = card_of(task)

    assert f"{n:,}: class0, class1" in body
    assert body.count("class") < CLASSES_SHOWN + 40
    assert (f"and {n - CLASSES_SHOWN:,} more" in body) == (n > CLASSES_SHOWN)


@pytest.mark.parametrize(
    "value",
    [10**400, -1, 1.5, True, "1", None, [0.5], 1e308, {"a": 1}, -0.5],
    ids=lambda v: str(v)[:9],
)
def test_what_is_no_share_is_not_in_the_table(value: Any) -> None:
    metrics = {"test": {"accuracy": 0.5, "calibration_error": value}}

    metadata, body = card_of(prompt(metrics=metrics))

    assert "| test | 50.0% |\n" in body
    assert metadata["metrics"] == ["accuracy"]


@pytest.mark.parametrize(
    "name", ["```\n<script>alert(1)</script>", "a\n\nb", "$(id)", "a; rm -rf ~", "`id`", "\x1b[2J"]
)
def test_the_id_of_a_backbone_stays_in_its_place(name: str) -> None:
    task = prompt()
    backbone = task.backbone.model_copy(update={"id": name})

    _, body = card_of(prompt(backbone=backbone))

    code = body.split("```sh\n")[1].split("\n```")[0]
    assert "prompt-serve export BACKBONE -o bundles/backbone" in code
    assert name not in body
    assert not any(mark in body for mark in ("<script", "$(id)", "\x1b"))
