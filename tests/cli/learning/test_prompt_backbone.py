"""The backbone of a prompt file is found again, or the error says how to name it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prompt_serve.cli.learning.prompt_backbone import find_backbone
from prompt_serve.errors import BackboneUnavailable
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.types import BackboneRef
from tests.backbones import write_tiny_backbone
from tests.cli.conftest import Run
from tests.drawings import draw_dataset

OPTIONS = ("--no-cache", "--json")


@pytest.fixture
def trained(run: Run, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``photos``, the backbone ``models/tiny`` and a prompt learned on it."""
    home = tmp_path / "home"
    draw_dataset(home / "photos", train=3, test=1)
    shutil.copytree(tiny_folder, home / "models" / "tiny")
    monkeypatch.chdir(home)
    result = run(
        *("train", "photos", "--backbone", "models/tiny", "--method", "zero-shot"),
        *("--out", "prompts/p.safetensors", "--no-cache", "--quiet"),
    )
    assert result.exit_code == 0, result.output
    return home


def forget(home: Path, caches: Path) -> None:
    shutil.rmtree(caches / "backbones")


def nothing(home: Path, caches: Path) -> None:
    pass


def moved_here(home: Path, caches: Path) -> None:
    (home / "models" / "tiny").rename(home / "tiny")


def moved_beside_the_prompt(home: Path, caches: Path) -> None:
    (home / "models" / "tiny").rename(home / "prompts" / "tiny")


def moved_and_forgotten(home: Path, caches: Path) -> None:
    forget(home, caches)
    moved_here(home, caches)


def damaged_note(home: Path, caches: Path) -> None:
    for note in (caches / "backbones").iterdir():
        note.write_bytes(b"\xff\xfe\x00")
    moved_beside_the_prompt(home, caches)


@pytest.mark.parametrize(
    "happened",
    [nothing, moved_here, moved_beside_the_prompt, moved_and_forgotten, damaged_note],
)
def test_it_is_found(
    happened: Callable[[Path, Path], None], trained: Path, caches: Path, run: Run
) -> None:
    happened(trained, caches)
    result = run("evaluate", "prompts/p.safetensors", "photos", *OPTIONS)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 4


def test_what_is_not_found_says_how_to_name_it(trained: Path, caches: Path, run: Run) -> None:
    shutil.move(trained / "models" / "tiny", trained.parent / "elsewhere")
    result = run("evaluate", "prompts/p.safetensors", "photos", *OPTIONS)
    assert result.exit_code == 2
    assert "learned on 'tiny'" in result.output
    assert "--backbone /path/to/tiny" in result.output
    named = ("--backbone", trained.parent / "elsewhere")
    result = run("evaluate", "prompts/p.safetensors", "photos", *OPTIONS, *named)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("change", ["weights", "mean", "resize_mode", "quick_gelu"])
def test_another_backbone_in_its_place_is_refused_before_images_are_read(
    change: str, trained: Path, caches: Path, run: Run
) -> None:
    folder = trained / "models" / "tiny"
    config = json.loads((folder / "config.json").read_text())
    if change == "weights":
        write_tiny_backbone(folder, seed=3)
    elif change == "quick_gelu":
        config["model_cfg"]["quick_gelu"] = True
    else:
        config["preprocess_cfg"][change] = {"mean": [0.4] * 3, "resize_mode": "squash"}[change]
    if change != "weights":
        (folder / "config.json").write_text(json.dumps(config))

    result = run("evaluate", "prompts/p.safetensors", "no-such-folder", *OPTIONS)

    assert result.exit_code == 2
    assert "The names are equal, but weights, activation, preprocessing" in result.output


@pytest.mark.parametrize("name", ["embedded", "embedded-vit", "ViT-B-16/openai", "RN50/random"])
def test_names_without_a_file_are_taken_as_they_are(
    name: str, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    assert find_backbone(ref(tiny_backbone, name), tmp_path / "p.safetensors") == name


@pytest.mark.parametrize(
    "label", ["ViT-B-32", "ViT-B-32/openai", "ViT-B-32-quickgelu", "RN50/cc12m", "RN50"]
)
def test_checkpoints_are_looked_for_by_name(
    label: str, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompt = tmp_path / "prompts" / "p.safetensors"
    prompt.parent.mkdir()
    learned_on = ref(tiny_backbone, f"{label}@b32.pt")
    with pytest.raises(BackboneUnavailable, match=f"--backbone {label}@/path/to/b32.pt"):
        find_backbone(learned_on, prompt)
    torch.save({}, prompt.parent / "b32.pt")
    assert find_backbone(learned_on, prompt) == f"{label}@{prompt.parent / 'b32.pt'}"
    torch.save({}, tmp_path / "b32.pt")
    assert find_backbone(learned_on, prompt) == f"{label}@{tmp_path / 'b32.pt'}"


def ref(backbone: Backbone, name: str) -> BackboneRef:
    return backbone.ref.model_copy(update={"id": name})
