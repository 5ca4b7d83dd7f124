"""Images with any number of labels, from tables and nested folders; every fault is listed."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from prompt_serve.errors import DatasetInvalid
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.multi_label.dataset import (
    LabeledPart,
    MultiLabelDataset,
    conflicting_copies,
    matched,
    read_multi_label,
    training_part,
)
from tests.drawings import draw_image


def draw(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        draw_image(root / name, (200, 40, 40), seed)


def labels_by_file(dataset: MultiLabelDataset, part: LabeledPart) -> dict[str, set[str]]:
    return {
        path.name: {n for n, has in zip(dataset.class_names, row, strict=True) if has}
        for path, row in zip(part.paths, part.labels, strict=True)
    }


def table(folder: Path, *rows: str) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(["path,label,split", *rows]) + "\n")
    return path


def test_cells_and_rows_add_up(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png", "c.png", "d.png", "e.png")
    source = table(
        tmp_path, "a.png,dog ; grass,train", "b.png,dog,train", "b.png,sky;,train",
        "c.png,,train", "d.png,sky,val", "e.png,grass;grass,test",
    )  # fmt: skip

    dataset = read_multi_label(source, rename={"sky": "clouds"})

    assert dataset.class_names == ("dog", "grass", "clouds")
    assert labels_by_file(dataset, training_part(dataset)) == {
        "a.png": {"dog", "grass"}, "b.png": {"dog", "clouds"}, "c.png": set(), "d.png": {"clouds"},
    }  # fmt: skip
    assert labels_by_file(dataset, dataset.parts["test"]) == {"e.png": {"grass"}}


def test_a_parquet_table_may_hold_lists(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png", "c.png")
    cells = [["dog", "grass"], [], None]
    columns = {"path": ["a.png", "b.png", "c.png"], "label": cells}
    parquet.write_table(pa.table(columns), tmp_path / "list.parquet")
    dataset = read_multi_label(tmp_path / "list.parquet")
    found = labels_by_file(dataset, dataset.parts["train"])
    assert found == {"a.png": {"dog", "grass"}, "b.png": set(), "c.png": set()}


def test_every_folder_on_the_way_is_a_label(tmp_path: Path) -> None:
    for part in ("train", "test"):
        draw(
            tmp_path / part, "animals/dog/a.png", "animals/cat/b.png", "animals/c.png", "d.png",
            "plants/dog/e.png", ".hidden/f.png",
        )  # fmt: skip
    dataset = read_multi_label(tmp_path)
    expected = {
        "a.png": {"animals", "dog"}, "b.png": {"animals", "cat"}, "c.png": {"animals"},
        "d.png": set(), "e.png": {"plants", "dog"},
    }  # fmt: skip
    assert labels_by_file(dataset, dataset.parts["train"]) == expected
    assert labels_by_file(dataset, dataset.parts["test"]) == expected


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["a.png,dog,train", "b.png,dog,train"], "every training image has the label 'dog'"),
        (["a.png,dog,train", "b.png,cat,test"], "label 'cat' has no training image"),
        (["a.png,,train", "b.png,,train"], "no image with a label"),
        (["a.png,dog,train", "a.png,cat,test"], "a.png is in train and in test"),
        (["a.png,dog,train", "b.png,,somewhere"], "split 'somewhere'"),
        (["a.png,dog,train", "x.png,cat,train"], "x.png: no such file"),
        (["a.png,dog,train", ",cat,train"], "row 2: path is empty"),
        (["a.png,dog,train", "broken.png,cat,train"], "broken.png: "),
    ],
)
def test_faults_are_listed(tmp_path: Path, rows: list[str], reason: str) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DatasetInvalid, match=reason):
        read_multi_label(table(tmp_path, *rows))


@pytest.mark.parametrize(
    "rows",
    [
        ["a.png,dog;cat,train", "b.png,dog,train"],
        ["a.png,dog,train", "b.png,dog,train", "a.png,cat,train"],
        ["a.png,dog;,train", "b.png,cat,train"],
        ["a.png,dog,train", "b.png,cat,train", "b.png,dog,test"],
        ["a.png,dog; cat,test", "b.png,dog,train", "b.png,cat,train"],
    ],
)
def test_without_the_option_several_labels_name_it(tmp_path: Path, rows: list[str]) -> None:
    draw(tmp_path, "a.png", "b.png")
    with pytest.raises(DatasetInvalid, match=r"several labels: .*train --multi-label"):
        read_dataset(table(tmp_path, *rows))


def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    source = table(tmp_path, "a.png,dog;cat,test", "b.png,,test")
    dataset = read_multi_label(source, to_learn=False)
    part = matched(dataset, ("sky", "dog", "cat"))["test"]
    assert part.labels.tolist() == [[False, True, True], [False, False, False]]
    with pytest.raises(DatasetInvalid, match="label 'dog' is not one of the prompt's"):
        matched(dataset, ("cat", "sky"))


def test_copies_with_other_labels_are_found(tmp_path: Path) -> None:
    draw(tmp_path, "one/a.png", "two/b.png")
    (tmp_path / "two" / "copy.png").write_bytes((tmp_path / "one" / "a.png").read_bytes())
    pairs = conflicting_copies(read_multi_label(tmp_path))
    assert [(a.name, b.name) for a, b in pairs] == [("a.png", "copy.png")]
