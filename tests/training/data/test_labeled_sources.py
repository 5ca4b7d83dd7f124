"""Labeled data in any form is the folder it was made of: same images, same order, same prompt."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from prompt_serve.cli.main import main
from prompt_serve.training.data.dataset import Split
from prompt_serve.training.data.loading import read_dataset
from tests.cli.conftest import Run, caches, run
from tests.drawings import draw_dataset
from tests.sources import labeled_forms as forms
from tests.sources.labeled_forms import FORMS, Images, images_of

__all__ = ["caches", "run"]  # fixtures

TRAIN = ["--method", "class-vectors", "--name", "pets", "--quiet"]
Content = dict[str, list[tuple[str, str]]]


def content(split: Split) -> Content:
    """Class and digest of every image, by part, in order."""
    return {
        part: [
            (images.class_names[item.label], hashlib.sha256(item.path.read_bytes()).hexdigest())
            for item in images.items
        ]
        for part, images in split.parts.items()
    }


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("pets") / "pets", train=4, val=1, test=2)


@pytest.fixture(scope="module")
def images(pets: Path) -> Images:
    return images_of(pets)


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_is_the_folder_it_was_made_of(
    pets: Path, images: Images, tmp_path: Path, form: str
) -> None:
    source = FORMS[form](images, tmp_path / "data")

    first, again = read_dataset(source), read_dataset(str(source))

    assert content(first) == content(again) == content(read_dataset(pets))
    assert first == again  # the same copies


def learned(source: Path, folder: Path) -> Path:
    """Return the prompt that the command learns."""
    path = folder / "pets.safetensors"
    done = CliRunner().invoke(main, ["train", str(source), *TRAIN, "-o", str(path), "--no-cache"])
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture(scope="module")
def prompt(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompt learned from the folder."""
    return learned(pets, tmp_path_factory.mktemp("prompt"))


@pytest.mark.parametrize("form", forms.short_first(FORMS))
def test_the_prompt_of_every_form_is_that_of_the_folder(
    run: Run, prompt: Path, images: Images, tmp_path: Path, form: str
) -> None:
    source = FORMS[form](images, tmp_path / "data")

    done = run("train", source, *TRAIN, "--out", tmp_path / "form.safetensors")

    assert done.exit_code == 0, done.output
    assert (tmp_path / "form.safetensors").read_bytes() == prompt.read_bytes()


@pytest.mark.parametrize(
    "form", ["imagefolder, metadata.csv", "Parquet of datasets", "WebDataset, .json", "JSON lines",
             "tar of class folders"],
)  # fmt: skip
def test_evaluate_reads_what_train_reads(
    run: Run, pets: Path, prompt: Path, images: Images, tmp_path: Path, form: str
) -> None:
    source = FORMS[form](images, tmp_path / "data")

    of_form = run("evaluate", prompt, source, "--json", "--report", tmp_path / "report.html")
    of_folder = run("evaluate", prompt, pets, "--json")

    assert of_form.exit_code == of_folder.exit_code == 0, of_form.output
    found = json.loads(of_form.stdout)
    del found["report"]
    assert found == json.loads(of_folder.stdout)


@pytest.mark.parametrize(
    "form", ["Parquet of datasets", "Parquet with bytes", "Arrow", "WebDataset, .cls text",
             "tar of class folders"],
)  # fmt: skip
@pytest.mark.parametrize("lost", ["nothing", "one", "all"])
def test_copies_that_were_removed_are_made_again(
    images: Images, tmp_path: Path, caches: Path, form: str, lost: str
) -> None:
    source = FORMS[form](images, tmp_path / "data")
    first = read_dataset(source)
    expected = content(first)
    copies = [item.path for part in first.parts.values() for item in part.items]
    assert all(copy.is_relative_to(caches / "images") for copy in copies)
    for copy in {"nothing": [], "one": copies[3:4], "all": copies}[lost]:
        copy.unlink()

    assert content(read_dataset(source)) == expected


@pytest.mark.parametrize("form", ["Parquet with bytes", "Arrow", "WebDataset, .json",
                                  "Parquet of datasets", "tar of class folders"])  # fmt: skip
def test_a_source_that_changed_is_read_again(images: Images, tmp_path: Path, form: str) -> None:
    before = content(read_dataset(FORMS[form](images, tmp_path / "data")))
    shutil.rmtree(tmp_path / "data")
    # The same names and number of images; other images behind them.
    turned = [
        forms.Labeled(one.part, one.label, one.name, other.data)
        for one, other in zip(images, images[::-1], strict=True)
    ]

    after = content(read_dataset(FORMS[form](turned, tmp_path / "data")))

    assert after != before
    assert [label for label, _ in after["train"]] == [label for label, _ in before["train"]]


@pytest.mark.parametrize("limit", ["0", "1KB", "20KB", "1MB", "20GB"])
def test_copies_stay_within_the_limit_except_those_in_use(
    images: Images, tmp_path: Path, caches: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv("PROMPT_SERVE_CACHE_LIMIT", limit)
    first = read_dataset(forms.parquet_bytes(images, tmp_path / "first"))
    second = read_dataset(forms.webdataset("text")(images, tmp_path / "second"))

    there = [all(item.path.exists() for item in split.train.items) for split in (first, second)]

    assert there[1]
    assert there[0] == (limit in ("1MB", "20GB"))


def test_cache_info_and_clear_know_the_copies(run: Run, images: Images, tmp_path: Path) -> None:
    read_dataset(forms.parquet_bytes(images, tmp_path / "data"))

    [line] = run("cache", "info", "--json").stdout.splitlines()
    cleared = run("cache", "clear", "images")

    assert json.loads(line)["cache"] == "images"
    assert json.loads(line)["files"] == len(images)
    assert f"images: {len(images)} files" in cleared.stdout
    assert run("cache", "info", "--json").stdout == ""
