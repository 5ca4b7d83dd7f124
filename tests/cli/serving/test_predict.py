"""``prompt-serve predict``: images of every kind of input, in this process."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import prompt_serve
from prompt_serve.cli.main import main
from tests.cli.conftest import Run
from tests.offline.prompts import zero_shot
from tests.service.prompts import picture


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return zero_shot(tmp_path / "pets.safetensors", "cat", "dog", "fish")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "deep/c.png")):
        (folder / name).write_bytes(picture(index))
    return folder


def documents(text: str) -> dict[str, dict[str, object]]:
    return {Path(one["source"]).name: one for one in map(json.loads, text.splitlines())}


def test_a_table_names_image_class_and_probability(run: Run, pets: Path, photos: Path) -> None:
    done = run("predict", pets, photos / "a.png", photos / "b.png")

    assert done.exit_code == 0, done.output
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["image", "class", "probability"]
    for row, image in zip(rows, (photos / "a.png", photos / "b.png"), strict=True):
        expected = prompt_serve.load(pets, threads=1).predict(image)
        assert row == [str(image), expected.class_name, f"{expected.probability:.2%}"]


def test_folders_lists_and_files_have_the_same_answers(run: Run, pets: Path, photos: Path) -> None:
    images = sorted(photos.rglob("*.png"))
    by_folder = documents(run("predict", pets, photos, "--json").stdout)
    by_name = documents(run("predict", "--json", *images, pets).stdout)
    listed = CliRunner().invoke(
        main, ["predict", str(pets), "-", "--json"], input="".join(f"{i}\n" for i in images)
    )

    assert by_folder == by_name == documents(listed.stdout)
    assert set(by_folder) == {"a.png", "b.png", "c.png"}


@pytest.mark.parametrize("top_k", [1, 2, 3, 9])
def test_json_has_the_best_classes_of_every_prompt(
    run: Run, pets: Path, photos: Path, top_k: int
) -> None:
    colors = zero_shot(pets.with_name("colors.safetensors"), "red", "blue")

    done = run("predict", pets, colors, photos / "a.png", "--json", "--top-k", top_k)

    [document] = map(json.loads, done.stdout.splitlines())
    found = {one["task"]: one["classes"] for one in document["predictions"]}
    assert {name: len(classes) for name, classes in found.items()} == {
        "pets": min(top_k, 3),
        "colors": min(top_k, 2),
    }
    for classes in found.values():
        probabilities = [score["probability"] for score in classes]
        assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize("data", [b"", b"text", picture(0)[:70], bytes(99), b"\xff\xd8\xff"])
def test_a_bad_image_is_told_and_the_others_are_classified(
    run: Run, pets: Path, photos: Path, data: bytes
) -> None:
    (photos / "bad.png").write_bytes(data)

    done = run("predict", pets, photos)
    as_json = documents(run("predict", pets, photos, "--json").stdout)

    assert done.exit_code == 1
    assert done.stderr.startswith(f"{photos / 'bad.png'}: Error: ")
    assert len(done.stdout.splitlines()) == 1 + 3
    assert set(as_json["bad.png"]) == {"source", "error"}
    assert "predictions" in as_json["a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/a.png"], "No prompt file"),
        (["pets.safetensors"], "No images"),
        (["pets.safetensors", "missing.png"], "No such file or folder"),
        (["missing.safetensors", "photos"], "missing.safetensors"),
        (["pets.safetensors", "photos", "--bundle", "nowhere"], "no bundle in nowhere"),
        (["pets.safetensors", "photos", "--device", "tpu"], "expected cpu, cuda or cuda:N"),
    ],
)
def test_misuse_is_one_line_that_says_what_is_wrong(
    run: Run,
    pets: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(pets.parent)

    done = run("predict", *arguments)

    assert done.exit_code == 2
    assert message in done.stderr
