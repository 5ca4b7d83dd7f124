"""Datasets: every layout gives the same split, and bad input comes out as one list of faults."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from prompt_serve.errors import DatasetInvalid
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.dataset import PARTS, Split
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.train import open_dataset
from tests.drawings import COLORS, draw_dataset, draw_image


def listed(split: Split, root: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        part: [
            (item.path.relative_to(root).as_posix(), split.class_names[item.label])
            for item in images.items
        ]
        for part, images in split.parts.items()
    }


def rows_of(root: Path) -> list[dict[str, str]]:
    return [
        {
            "path": path.relative_to(root).as_posix(),
            "style": "noise",
            "label": path.parent.name,
            "split": path.parent.parent.name,
        }
        for path in sorted(root.rglob("*.png"))
    ]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_split_file(rows: list[dict[str, str]], path: Path) -> Path:
    labels = {name: label for label, name in enumerate(COLORS)}
    document: dict[str, list[list[object]]] = {}
    for row in rows:
        entry = [row["path"], labels[row["label"]], row["label"]]
        document.setdefault(PARTS[row["split"]], []).append(entry)
    path.write_text(json.dumps(document))
    return path


def test_all_sources_give_the_same_split(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path / "set", train=3, valid=1, test=2)
    rows = rows_of(root)
    (root / "train" / "blue" / ".hidden.png").write_bytes(b"")
    (root / "train" / "blue" / "notes.txt").write_text("no image")
    expected = listed(read_dataset(root), root)
    sources = [
        write_csv(root / "manifest.csv", rows),
        root / "manifest.parquet",
        write_split_file(rows, root / "split_zhou_Set.json"),
    ]
    parquet.write_table(pa.Table.from_pylist(rows), sources[1])
    assert {part: len(items) for part, items in expected.items()} == {
        "train": 12,
        "val": 4,
        "test": 8,
    }
    for source in sources:
        split = read_dataset(source)
        assert split.class_names == tuple(sorted(COLORS))
        assert listed(split, root) == expected


def test_a_folder_a_class_is_all_training_images(tmp_path: Path) -> None:
    split = read_dataset(draw_dataset(tmp_path, all=2))
    assert len(split.train) == 8
    assert split.val is None
    assert split.test is None


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "train"):
        draw_image(tmp_path / name / "1.png", (1, 2, 3), 0)
    assert read_dataset(tmp_path).class_names == ("car", "train")


def test_a_table_without_splits_is_all_training_images(tmp_path: Path) -> None:
    rows = rows_of(draw_dataset(tmp_path, train=2))
    table = [{"path": row["path"], "label": row["label"]} for row in rows]
    split = read_dataset(write_csv(tmp_path / "m.csv", table))
    assert len(split.train) == 8


@pytest.mark.parametrize("folder", ["images", "jpg", "elsewhere"])
def test_the_images_of_a_split_file_are_found_or_named(tmp_path: Path, folder: str) -> None:
    images = draw_dataset(tmp_path / folder, train=2, test=1)
    source = write_split_file(rows_of(images), tmp_path / "split_zhou_X.json")
    if folder == "elsewhere":
        with pytest.raises(DatasetInvalid, match="name their folder with --images"):
            read_dataset(source)
    split = read_dataset(source, images=images if folder == "elsewhere" else None)
    assert len(split.train) == 8


def test_classes_can_be_renamed(colors: Path) -> None:
    split = read_dataset(colors, rename={"red": "crimson"})
    assert split.class_names == ("blue", "green", "crimson", "yellow")


def test_all_faults_of_a_folder_come_at_once(tmp_path: Path, tiny_backbone: Backbone) -> None:
    root = draw_dataset(tmp_path, train=3, test=1)
    (root / "train" / "empty").mkdir()
    draw_image(root / "test" / "purple" / "1.png", (99, 0, 99), 1)
    (root / "train" / "red" / "broken.png").write_bytes(b"\x89PNG but not really")
    (root / "test" / "blue" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    long = "word " * 40
    draw_image(root / "train" / long / "1.png", (5, 5, 5), 2)
    with pytest.raises(DatasetInvalid) as caught:
        open_dataset(root, tiny_backbone, make_config(shots=3), rename={"pink": "rose"})
    text = str(caught.value)
    for expected in (
        "class 'empty' has no training image",
        "purple: no training folder has this class",
        "broken.png: ",
        "cut.jpg: ",
        f"class {long!r} has 1 training image, fewer than 3 shots",
        f"{long!r}: 45 tokens with its template",
        "no class is called 'pink'",
    ):
        assert expected in text
    assert len(caught.value.faults) == 7


def test_all_faults_of_a_table_come_at_once(tmp_path: Path) -> None:
    rows = rows_of(draw_dataset(tmp_path, train=2, test=1))
    rows[0]["split"], rows[1]["label"], rows[2]["path"] = "practice", "", "gone.png"
    rows.append({"path": rows[3]["path"], "style": "", "label": "mauve", "split": "test"})
    with pytest.raises(DatasetInvalid) as caught:
        read_dataset(write_csv(tmp_path / "m.csv", rows))
    text = str(caught.value)
    for expected in (
        "row 1: split 'practice'; expected train, val or test",
        "row 2: label is empty",
        "gone.png: no such file",
        "label 'mauve' has no training image",
    ):
        assert expected in text


def test_all_faults_of_a_split_file_come_at_once(tmp_path: Path) -> None:
    root = draw_dataset(tmp_path, train=2)
    document = {
        "train": [
            ["train/blue/00.png", 0, "blue"],
            ["train/green/00.png", 0, "green"],
            ["train/red/00.png", 3, "red"],
            ["train/red/00.png", -1, "red"],
            ["gone.png", 0, "blue"],
            "nonsense",
        ]
    }
    (root / "split.json").write_text(json.dumps(document))
    with pytest.raises(DatasetInvalid) as caught:
        read_dataset(root / "split.json")
    text = str(caught.value)
    for expected in (
        "label 0 is both 'blue' and 'green'",
        "labels are 2 numbers, but not 0 to 1: no 1",
        "train[3] is ['train/red/00.png', -1, 'red']",
        "train[5] is 'nonsense'",
        "gone.png: no such file",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.csv", "file,class\na.png,cat\n", "column 'path' is missing; the table has file, class"),
        ("m.csv", "", "column 'label' is missing"),
        ("m.csv", "path,label\n", "no class with an image"),
        ("m.json", "{", "is not JSON"),
        ("m.json", "[1]", "is not a split file"),
        ("m.parquet", "PAR", "is not a Parquet file"),
        ("m.xlsx", "PK", "is not a dataset file; expected"),
    ],
)
def test_a_file_that_is_not_a_dataset_is_refused(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetInvalid, match=reason):
        read_dataset(tmp_path / name)


def test_one_class_nothing_and_nowhere_are_refused(tmp_path: Path, tiny_backbone: Backbone) -> None:
    with pytest.raises(DatasetInvalid, match="no class with an image"):
        open_dataset(tmp_path, tiny_backbone, make_config())
    draw_image(tmp_path / "only" / "1.png", (1, 2, 3), 0)
    with pytest.raises(DatasetInvalid, match="there is one class only, 'only'"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetInvalid, match="There is no folder or file"):
        read_dataset(tmp_path / "nowhere")
