"""One's own folders and tables as a suite."""

from pathlib import Path

import pytest

from prompt_serve.errors import ConfigInvalid, DatasetInvalid, DatasetMissing
from prompt_serve.research.datasets.user_datasets import folder_suite
from tests.drawings import COLORS, draw_dataset
from tests.training.data.test_loading import rows_of, write_csv, write_split_file


def test_every_kind_of_source_is_a_dataset_called_after_its_file(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "colors", train=2, test=1)
    sources = [
        root,
        write_csv(root / "table.v2.csv", rows_of(root)),
        write_split_file(rows_of(root), root / "split_zhou_Colors.json"),
    ]
    suite = folder_suite(sources)
    assert list(suite.datasets) == ["colors", "table.v2", "split_zhou_Colors"]
    assert (suite.name, suite.source) == ("user", "colors")
    for name in suite.datasets:
        dataset = suite.load(name)
        assert dataset.name == name
        assert dataset.split.class_names == tuple(sorted(COLORS))
        assert dataset.split.test is not None
        assert not dataset.domains


def test_datasets_of_one_name_get_a_number(tmp_path: Path) -> None:
    sources = [draw_dataset(tmp_path / part / "set", train=1) for part in ("a", "b", "c")]
    assert list(folder_suite(sources).datasets) == ["set", "set-2", "set-3"]


def test_datasets_are_read_when_they_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    suite = folder_suite([tmp_path / "empty", tmp_path / "gone"])
    with pytest.raises(DatasetInvalid, match="no class with an image"):
        suite.load("empty")
    with pytest.raises(DatasetMissing, match="there is no folder or file"):
        suite.load("gone")


def test_domains_may_know_some_of_the_classes(tmp_path: Path) -> None:
    photos = draw_dataset(tmp_path / "photos", train=1, test=1)
    sketches = draw_dataset(tmp_path / "sketches", all=2)
    for folder in ("blue", "red"):
        (sketches / folder).rename(tmp_path / folder)
    suite = folder_suite(
        [draw_dataset(tmp_path / "other", train=1), photos],
        source="photos",
        domains={"sketch": sketches, "photo": photos, "gone": tmp_path / "gone"},
    )
    assert not suite.load("other").domains
    domains = suite.load("photos").domains
    assert list(domains) == ["sketch", "photo"]
    assert domains["sketch"].class_names == ("green", "yellow")
    assert len(domains["sketch"]) == 4
    assert len(domains["photo"]) == 4  # the test images alone
    assert "there is no folder or file" in suite.missing_domains["gone"]


def test_a_domain_of_other_classes_is_refused(tmp_path: Path) -> None:
    photos = draw_dataset(tmp_path / "photos", train=1, test=1)
    sketches = draw_dataset(tmp_path / "sketches", all=1)
    (sketches / "red").rename(sketches / "crimson")
    domains = folder_suite([photos], domains={"sketch": sketches}).load("photos").domains
    with pytest.raises(DatasetInvalid, match="class 'crimson' is not one of those in"):
        domains["sketch"]


def test_a_suite_needs_a_dataset_and_a_source_of_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="There is no dataset: name at least one"):
        folder_suite([])
    with pytest.raises(ConfigInvalid, match="No dataset is named 'cats'; there are dogs"):
        folder_suite([tmp_path / "dogs"], source="cats")
