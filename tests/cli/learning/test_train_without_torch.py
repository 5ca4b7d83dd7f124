"""``prompt-serve train`` in an installation without torch, in processes of their own."""

import json
from pathlib import Path

import pytest

from prompt_serve.prompts.prompt_file import read_prompt_file
from tests.drawings import draw_dataset
from tests.no_torch import run_without_torch


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("drawn"), train=6, test=3)


def train(folder: Path, photos: Path, *options: str) -> tuple[int, str]:
    """Run the command; return its exit status and its output."""
    done = run_without_torch(
        folder, "-m", "prompt_serve", "train", str(photos), "--out",
        str(folder / "out.safetensors"), "--no-cache", "--backbone", "embedded-vit", *options,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("method", [(), ("--method", "auto"), ("--method", "class-vectors")])
def test_class_vectors_are_learned(tmp_path: Path, photos: Path, method: tuple[str, ...]) -> None:
    log = tmp_path / "log.jsonl"

    status, report = train(tmp_path, photos, *method, "--log", str(log), "--name", "colors")

    assert status == 0, report
    prompt = read_prompt_file(tmp_path / "out.safetensors")
    assert (prompt.name, prompt.method) == ("colors", "class-vectors")
    assert prompt.training["bits"] == 4
    assert prompt.metrics["test"]["accuracy"] >= 0.9
    assert "test " in report
    assert json.loads(log.read_text())["metrics"] == prompt.metrics
    assert prompt.sketch is not None
    assert prompt.metrics["train_accuracy"] >= 0.9
    low, high = prompt.metrics["cross-validation"]["interval"]
    assert low <= prompt.metrics["cross-validation"]["accuracy"] <= high


def test_sketch_and_page_are_as_with_torch(tmp_path: Path, photos: Path) -> None:
    page = tmp_path / "x.html"

    status, report = train(tmp_path, photos, "--no-sketch", "--report", str(page))

    assert status == 0, report
    assert read_prompt_file(tmp_path / "out.safetensors").sketch is None
    assert "12 of part test" in page.read_text()
    assert "of these bytes" not in report


def test_settings_come_from_options_and_from_a_file(tmp_path: Path, photos: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('method = "class-vectors"\nshots = 2\nbits = 8\nseed = 5\n')

    status, report = train(
        tmp_path, photos, "--config", str(settings), "--bits", "2", "--no-text-prior"
    )

    assert status == 0, report
    training = read_prompt_file(tmp_path / "out.safetensors").training
    assert (training["shots"], training["bits"], training["seed"]) == (2, 2, 5)
    assert (training["text_prior"], training["text_weight"]) == (False, 0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--method", "dip"), "Training dip needs torch: pip install 'prompt-serve[train]'"),
        (("--seeds", "1,2"), "--seeds needs torch: pip install 'prompt-serve[train]'"),
        (("--backbone", "ViT-B-16/openai"), "Backbone 'ViT-B-16/openai' needs torch"),
        (("--shots", "9"), "has 6 training images, fewer than 9 shots"),
        (("--shots", "-1"), "shots is -1; expected a whole number"),
        (("--device", "cuda:7"), "CUDA device 7 was requested"),
    ],
)
def test_what_cannot_be_learned_says_why(
    tmp_path: Path, photos: Path, options: tuple[str, ...], reason: str
) -> None:
    status, output = train(tmp_path, photos, *options)

    assert status != 0
    assert reason in " ".join(output.split())
    assert not (tmp_path / "out.safetensors").exists()


def test_an_unknown_setting_in_a_file_is_named(tmp_path: Path, photos: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("bitz = 8\nshots = -3\n")

    status, output = train(tmp_path, photos, "--config", str(settings))

    assert status != 0
    assert "bitz is not a setting" in output
    assert "shots is -3" in output


@pytest.mark.parametrize(
    "module",
    [
        "prompt_serve.training.data.loading",
        "prompt_serve.training.data.features",
        "prompt_serve.training.without_torch.class_vectors",
        "prompt_serve.cli.learning.train",
        "prompt_serve.cli.learning.inspect",
    ],
)
def test_modules_for_learning_in_closed_form_import_no_torch(tmp_path: Path, module: str) -> None:
    done = run_without_torch(tmp_path, "-c", f"import {module}, sys; print('torch' in sys.modules)")

    assert (done.stdout, done.stderr) == ("False\n", "")
