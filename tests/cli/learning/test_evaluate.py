"""``prompt-serve evaluate`` and ``baselines`` as a user runs them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.closed_form.learn import learn_classes
from prompt_serve.errors import PromptUnsupported
from prompt_serve.prompts.encodings import Conditional, Dense
from prompt_serve.prompts.prompt_file import Prompt, read_prompt_file, write_prompt_file
from prompt_serve.training.class_sets import with_classes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.features import image_features
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.training.train import train_prompt
from prompt_serve.training.without_torch.evaluation import Evaluation
from tests.cli.conftest import Run
from tests.drawings import draw_dataset
from tests.parsed_page import Page


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("photos"), train=4, test=2)


@pytest.fixture(scope="module")
def learned(
    photos: Path, tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Evaluation]:
    """A prompt file, and its accuracy on the test images as training measured it."""
    config = make_config(
        method="coop", shots=3, epochs=3, views=0, learning_rate=0.5, unknown_share=0.3
    )
    result = train_prompt(tiny_backbone, read_dataset(photos), config, name="colors")
    path = tmp_path_factory.mktemp("prompts") / "colors.safetensors"
    write_prompt_file(result.prompt, path)
    return path, result.comparisons["test"].prompt


def test_the_figures_are_those_of_training(
    run: Run, photos: Path, learned: tuple[Path, Evaluation], tiny_folder: Path
) -> None:
    path, expected = learned
    options = ("--backbone", tiny_folder, "--no-cache")
    result = run("evaluate", path, photos, *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["part"] == "test"
    assert found["images"] == expected.images == 8
    assert found["accuracy"] == expected.accuracy
    assert found["calibration_error"] == expected.calibration_error
    assert found["unknown"] == expected.unknown
    assert list(found["per_class"].values()) == list(expected.per_class)
    text = run("evaluate", path, photos, *options, "--part", "train").stdout
    assert "16 of part train" in text
    assert "yellow" in text


def test_classes_are_matched_by_name(
    run: Run, photos: Path, learned: tuple[Path, Evaluation], tiny_folder: Path, tmp_path: Path
) -> None:
    path, expected = learned
    # In sorted order the labels of these names are others than the file's.
    renamed = tmp_path / "renamed"
    for old, new in (("blue", "z"), ("green", "y"), ("red", "x"), ("yellow", "w")):
        (renamed / new).mkdir(parents=True)
        for image in (photos / "test" / old).iterdir():
            (renamed / new / image.name).write_bytes(image.read_bytes())
    options = ["--backbone", tiny_folder, "--no-cache", "--json"]
    names = ["--class-name", "z=blue", "--class-name", "y=green", "--class-name", "x=red"]
    right = run("evaluate", path, renamed, *options, *names, "--class-name", "w=yellow")
    assert json.loads(right.stdout)["accuracy"] == expected.accuracy
    assert json.loads(right.stdout)["part"] == "train"  # the only one
    wrong = run("evaluate", path, renamed, *options, *names)
    assert wrong.exit_code == 2
    assert "class 'w' is not one of the prompt's" in wrong.output
    assert "class 'yellow' of the prompt has no images" in wrong.output
    assert "--new-classes" in wrong.output


def test_a_missing_part_says_which_there_are(
    run: Run, photos: Path, learned: tuple[Path, Evaluation], tiny_folder: Path
) -> None:
    result = run(
        "evaluate", learned[0], photos, "--backbone", tiny_folder, "--part", "val", "--no-cache"
    )
    assert result.exit_code == 2
    assert "has no part 'val'; name one it has with --part: train, test" in result.output


def test_a_learned_context_takes_other_classes(
    run: Run, photos: Path, learned: tuple[Path, Evaluation], tiny_backbone: Backbone,
    tiny_folder: Path,
) -> None:  # fmt: skip
    path, _ = learned
    prompt = read_prompt_file(path)
    other = with_classes(prompt, ("yellow", "a red thing"), tiny_backbone)
    old = class_features_of(prompt, tiny_backbone)
    new = class_features_of(other, tiny_backbone)
    assert np.abs(new[0] - old[3]).max() < 1e-5  # the same context before the same name
    assert np.abs(new[1] - old[2]).max() > 1e-3
    assert other.probe.shape == (2,)
    assert other.metrics == {}
    options = ("--backbone", tiny_folder, "--no-cache", "--json")
    same = run("evaluate", path, photos, *options, "--class-names", "red, blue,green,yellow")
    assert list(json.loads(same.stdout)["per_class"]) == ["red", "blue", "green", "yellow"]
    assert run("evaluate", path, photos, *options, "--new-classes").exit_code == 0
    both = run("evaluate", path, photos, *options, "--new-classes", "--class-names", "a,b")
    assert both.exit_code == 2


def test_class_specific_contexts_take_no_other_classes(
    learned: tuple[Path, Evaluation], tiny_backbone: Backbone
) -> None:
    prompt = read_prompt_file(learned[0])
    assert isinstance(prompt.text, Dense)
    context = np.stack([np.asarray(prompt.text.context)] * 4)
    own = replace(prompt, text=Dense(context=context))
    with pytest.raises(PromptUnsupported, match="leave class_specific out"):
        with_classes(own, ("a", "b"), tiny_backbone)


def with_image_branch(prompt: Prompt) -> Prompt:
    context = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float16)
    return replace(prompt, image=Dense(context=context))


def with_network(prompt: Prompt) -> Prompt:
    assert isinstance(prompt.text, Dense)
    rng = np.random.default_rng(0)
    w_1, b_1, w_2, b_2 = (
        rng.normal(size=shape).astype(np.float16) for shape in ((2, 24), (2,), (32, 2), (32,))
    )
    text = Conditional(context=prompt.text.context, w_1=w_1, b_1=b_1, w_2=w_2, b_2=b_2)
    return replace(prompt, text=text)


@pytest.mark.parametrize("change", [with_image_branch, with_network])
def test_prompts_of_images_are_evaluated_too(
    run: Run, photos: Path, learned: tuple[Path, Evaluation], tiny_folder: Path, tmp_path: Path,
    change: Callable[[Prompt], Prompt],
) -> None:  # fmt: skip
    path = tmp_path / "changed.safetensors"
    write_prompt_file(change(read_prompt_file(learned[0])), path)
    result = run("evaluate", path, photos, "--backbone", tiny_folder, "--no-cache", "--new-classes")
    assert result.exit_code == 0, result.output
    assert "8 of part test" in result.output


def test_a_report_shows_the_figures_of_the_command(
    run: Run, photos: Path, learned: tuple[Path, Evaluation], tiny_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    path, expected = learned
    report = tmp_path / "pages" / "report.html"
    options = ("--backbone", tiny_folder, "--no-cache", "--report", report)
    result = run("evaluate", path, photos, *options)
    assert result.exit_code == 0, result.output
    assert str(report) in result.output
    first = report.read_bytes()
    page = Page(first.decode())
    cards = [one for one in page.all("div") if one.attributes.get("class") == "card"]
    accuracy, zero_shot, calibration_error, unknown = (float(one.data[0]) for one in cards)
    assert accuracy == expected.accuracy
    assert zero_shot == read_prompt_file(path).metrics["test"]["zero_shot_accuracy"]
    assert calibration_error == expected.calibration_error
    assert unknown == pytest.approx(expected.unknown)
    classes = page.table("Classes, the lowest recall first")
    colors = ("blue", "green", "red", "yellow")
    recalls = dict(zip(colors, expected.per_class, strict=True))
    assert {name: float(row[0]) for name, row in classes.items()} == recalls
    assert "Left out: 16 images of part train." in page.all("body")[0].text
    assert len(page.all("img")) == round((1 - expected.accuracy) * 8)
    run("evaluate", path, photos, *options, "--json")
    assert report.read_bytes() == first


def test_the_report_of_class_vectors_counts_unlike_images(
    run: Run, photos: Path, tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    train = image_features(read_dataset(photos).train, tiny_backbone)
    found = learn_classes(train.plain, train.labels, 4, logit_scale=tiny_backbone.logit_scale)
    prompt = Prompt(
        name="colors",
        method="classes",
        class_names=("blue", "green", "red", "yellow"),
        templates=("a photo of a {}.",),
        backbone=tiny_backbone.ref,
        probe=np.zeros(4, dtype=np.float16),
        temperature=found.temperature,
        classes=found.classes,
        sketch=found.sketch,
        unlike_below=0.999,  # a random backbone finds all images alike
    )
    path, report = tmp_path / "colors.safetensors", tmp_path / "report.html"
    write_prompt_file(prompt, path)
    options = ("--backbone", tiny_folder, "--no-cache", "--report", report)
    assert run("evaluate", path, photos, *options).exit_code == 0
    test = read_dataset(photos).test
    assert test is not None
    cosines = image_features(test, tiny_backbone).plain @ found.sketch.directions().T
    unlike = sum(max(row) < 0.999 for row in cosines.tolist())
    assert unlike > 0
    page = Page(report.read_text())
    assert f"{unlike} images are unlike the training images" in page.all("body")[0].text
    assert "zero-shot accuracy" in page.all("body")[0].text


def test_a_report_that_cannot_be_written_is_an_error_before_any_work(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("old")
    # Neither the prompt nor the images exist: the report is checked first.
    for report, fault in (
        (tmp_path, f"{tmp_path} is a folder; name a file in it."),
        (
            tmp_path / "file" / "report.html",
            f"written: {tmp_path / 'file'} is not a folder.",
        ),
    ):
        result = run("evaluate", tmp_path / "no.safetensors", tmp_path / "none", "--report", report)
        assert result.exit_code == 2
        assert result.output.splitlines()[-1].startswith("Error: Invalid value for '--report': ")
        assert fault in result.output
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_baselines_are_a_table_or_json(run: Run, photos: Path, tiny_folder: Path) -> None:
    options = ("--backbone", tiny_folder, "--shots", "3", "--views", "2", "--no-cache")
    rows = json.loads(run("baselines", photos, *options, "--json").stdout)
    assert [row["name"] for row in rows] == [
        "zero-shot", "ensemble", "linear probe", "CLIP-Adapter", "Tip-Adapter", "Tip-Adapter-F",
    ]  # fmt: skip
    assert all(row["test"]["images"] == 8 and row["val"]["images"] == 4 for row in rows)
    table = run("baselines", photos, *options).stdout
    assert "linear probe" in table
    none_left = run("baselines", photos, "--backbone", tiny_folder, "--shots", "4", "--no-cache")
    assert none_left.exit_code == 2
    assert "Use fewer shots" in none_left.output
