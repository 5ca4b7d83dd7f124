"""``prompt-serve data``: what is there, what to fetch, and whether it is as published."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prompt_serve.cli.research.data import data
from prompt_serve.errors import DatasetInvalid, DatasetMissing
from prompt_serve.research.datasets import spec as specs
from tests.drawings import draw_image
from tests.research.datasets.trees import domain_trees, imagenet_tree, split_tree


def run(*arguments: object) -> Result:
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def test_the_list_says_what_is_there_and_what_to_fetch(tmp_path: Path) -> None:
    tree = split_tree(tmp_path, "dtd", "DTD")
    result = run("list", "--datasets-root", tmp_path)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == f"1 of 15 datasets found below {tmp_path}."
    there = [line for line in lines if "  found  " in line]
    assert len(there) == 1
    assert there[0].split()[0] == "dtd"
    assert there[0].endswith(str(tree.folder))
    assert sum(line.startswith("eurosat: there is no folder eurosat/") for line in lines) == 1
    assert "https://github.com/phelber/EuroSAT" in result.output


def test_the_list_is_a_document_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split_tree(tmp_path, "dtd", "DTD")
    monkeypatch.setenv("PROMPT_SERVE_DATASETS", str(tmp_path))
    document = json.loads(run("list", "--json").output)
    assert document["root"] == str(tmp_path)
    rows = {row["name"]: row for row in document["datasets"]}
    assert len(rows) == 15
    assert rows["dtd"]["there"]
    assert rows["dtd"]["folder"] == str(tmp_path / "DTD")
    assert rows["dtd"]["missing"] == ""
    assert not rows["imagenet-r"]["there"]
    assert rows["imagenet-r"]["kind"] == "domain"
    assert "Download the images" in rows["imagenet-r"]["missing"]
    assert rows["sun397"]["images"] == {"train": 15_880, "val": 3_970, "test": 19_850}


def test_a_dataset_that_is_not_as_published_is_refused(tmp_path: Path) -> None:
    split_tree(tmp_path, "oxford_flowers")
    result = run("check", "Flower102", "--datasets-root", tmp_path)
    assert isinstance(result.exception, DatasetInvalid)
    text = str(result.exception)
    assert "it has 4 classes; published are 102" in text
    assert "train has 12 images; published are 4,093" in text
    missing = run("check", "eurosat", "--datasets-root", tmp_path)
    assert isinstance(missing.exception, DatasetMissing)
    assert missing.exception.facts["name"] == "eurosat"
    assert "not one of imagenet, caltech101" in run("check", "mnist").output


def test_a_dataset_as_published_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = split_tree(tmp_path, "eurosat")
    # The published counts would take 27,000 files.
    monkeypatch.setattr(specs, "paper_datasets", lambda: tree.specs)
    result = run("check", "eurosat", "--datasets-root", tmp_path)
    assert result.output.splitlines()[:6] == [
        "eurosat: EuroSAT, as published.",
        "4 classes, from 'Annual Crop Land' to 'Sea or Lake'",
        "train: 12 images",
        "val: 4 images",
        "test: 8 images",
        "The new classes begin with 'Highway or Road'.",
    ]
    result = run("check", "eurosat", "--datasets-root", tmp_path, "--decode")
    assert isinstance(result.exception, DatasetInvalid)
    assert len(result.exception.faults) == 24  # the files of the tree are empty
    for path in (tree.folder / "2750").rglob("*.jpg"):
        draw_image(path, (1, 2, 3), 0)
    assert run("check", "eurosat", "--datasets-root", tmp_path, "--decode").exit_code == 0


def test_a_domain_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet_tree(tmp_path)
    domains = domain_trees(tmp_path)
    monkeypatch.setattr(specs, "imagenet_domains", lambda: domains)
    result = run("check", "imagenet-adversarial", "--datasets-root", tmp_path)
    assert result.output.splitlines() == [
        "imagenet-a: ImageNet-A, as published.",
        "2 classes, from 'tench' to 'sunglasses'",
        "test: 4 images",
        "Note: Its own 200 classes only.",
    ]
