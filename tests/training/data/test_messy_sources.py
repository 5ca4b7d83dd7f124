"""Labeled data with faults: every form says what is missing, and names the images."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prompt_serve.errors import DatasetInvalid
from prompt_serve.training.data.loading import check_images, read_dataset
from prompt_serve.training.data.tables import ColumnNames
from prompt_serve.training.multi_label.dataset import read_multi_label
from tests.cli.conftest import Run, caches, run
from tests.drawings import draw_dataset
from tests.sources import labeled_forms as forms
from tests.sources.labeled_forms import FORMS, Images, images_of

__all__ = ["caches", "run"]  # fixtures


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images_of(draw_dataset(tmp_path_factory.mktemp("pets") / "pets", train=3, test=1))


def faults(source: Path, **options: Any) -> str:
    with pytest.raises(DatasetInvalid) as caught:
        read_dataset(source, **options)
    return str(caught.value)


# Name of image 1 in messages, relative to the source.
NAMES = {
    "imagefolder, metadata.csv": "train/blue-01.png",
    "imagefolder, one metadata.jsonl": "train/blue-01.png",
    "CSV": "files/001.png",
    "Parquet of datasets": "data/train-00000-of-00002.parquet#1",
    "Parquet with bytes": "pets.parquet#1",
    "Arrow": "pets.arrow#1",
    "WebDataset, .json": "pets-train-0000.tar/000001.png",
    "tar of class folders": "pets.tar.gz/./pets/train/blue/01.png",
}


@pytest.mark.parametrize("form", list(NAMES))
def test_unreadable_images_are_counted_and_named(images: Images, tmp_path: Path, form: str) -> None:
    bad = [replace(one, data=b"no image") if n == 1 else one for n, one in enumerate(images)]
    source = FORMS[form](bad, tmp_path / "data")

    text = faults(source, repairs=[check_images()])
    split = read_dataset(source, repairs=[check_images(on_bad_image="skip")])

    assert f"{tmp_path / 'data'}/{NAMES[form]}: " in text
    assert len(split.train) == 11
    assert any("1 unreadable image skipped" in n and NAMES[form] in n for n in split.notes)


@pytest.mark.parametrize(
    "form", ["CSV", "JSON", "JSON lines", "Parquet with paths", "Parquet with bytes", "Arrow",
             "Parquet of datasets"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("columns", "missing"),
    [
        (ColumnNames(label="species"), "column 'species' is missing; the table has "),
        (ColumnNames(image="picture"), "column 'picture' is missing; the table has "),
        (ColumnNames(label="Label", image="picture"), "name the column with --image-column"),
        (ColumnNames(label="x y"), "column 'x y' is missing"),
        (ColumnNames(label="species", image="picture"), "name the column with --label-column"),
    ],
)
def test_a_missing_column_lists_those_there_are(
    images: Images, tmp_path: Path, form: str, columns: ColumnNames, missing: str
) -> None:
    text = faults(FORMS[form](images, tmp_path / "data"), columns=columns)

    assert missing in text
    assert "label" in text.partition("the table has ")[2]


def _renamed(path: Path, names: dict[str, str]) -> None:
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([names.get(n, n) for n in table.column_names]), path)


@pytest.mark.parametrize("label", ["species", "Fine Label", "class", "category", "y"])
def test_columns_are_read_under_any_name(images: Images, tmp_path: Path, label: str) -> None:
    source = FORMS["Parquet with bytes"](images, tmp_path / "data")
    _renamed(source, {"label": label, "image": "picture"})

    split = read_dataset(source, columns=ColumnNames(image="picture", label=label))

    assert len(split.train) == 12
    assert split.class_names == ("blue", "green", "red", "yellow")


@pytest.mark.parametrize("field", ["species", "kind of", "Class", "category", "y"])
def test_a_field_of_a_webdataset_is_read_under_any_name(
    images: Images, tmp_path: Path, field: str
) -> None:
    samples = [
        (f"{n}{suffix}", data)
        for n, one in enumerate(images)
        for suffix, data in (
            (".json", json.dumps({"caption": "x", field: one.label}).encode()),
            (".png", one.data),
        )
    ]
    source = forms._tar(tmp_path / "pets.tar", samples)

    split = read_dataset(source, columns=ColumnNames(label=field))

    assert split.class_names == ("blue", "green", "red", "yellow")
    text = faults(source)
    assert f"their fields: caption, {field.lower()}; name one with --label-column" in text


def _unlabeled(form: str) -> Callable[[Images, Path], Path]:
    """Return the form with images 0 and 2 without a label."""

    def make(images: Images, out: Path) -> Path:
        source = FORMS[form](images, out)
        if form.startswith("Parquet"):
            table = pq.read_table(source)
            labels = table["label"].to_pylist()
            labels[0], labels[2] = None, "" if isinstance(labels[2], str) else -1
            place = table.column_names.index("label")
            table = table.set_column(place, "label", pa.array(labels))
            pq.write_table(table, source)
        else:
            text = source.read_text().splitlines(keepends=True)
            first = 1 if form == "CSV" else 0
            for line in (first, first + 2):
                text[line] = text[line].replace("blue", "")
            source.write_text("".join(text))
        return source

    return make


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("CSV", ("row 1", "row 3")),
        ("JSON lines", ("row 1", "row 3")),
        ("Parquet with paths", ("row 1", "row 3")),
        ("Parquet with bytes", ("pets.parquet#0", "pets.parquet#2")),
    ],
)
def test_rows_without_a_label_are_named(
    images: Images, tmp_path: Path, form: str, names: tuple[str, str]
) -> None:
    text = faults(_unlabeled(form)(images, tmp_path / "data"))

    assert all(f"{name}: label is empty" in text for name in names)
    assert text.count("label is empty") == 2


@pytest.mark.parametrize("lost", [(0,), (1, 2), (0, 1, 2), (5,), (11,)])
def test_samples_without_a_label_are_named(
    images: Images, tmp_path: Path, lost: tuple[int, ...]
) -> None:
    samples = [
        (f"{n:03}{suffix}", data)
        for n, one in enumerate(images)
        for suffix, data in ((".cls", one.label.encode()), (".png", one.data))
        if suffix == ".png" or n not in lost
    ]

    text = faults(forms._tar(tmp_path / "pets.tar", samples))

    assert all(f"pets.tar/{n:03}.png: no label (.cls or .json) is beside it" in text for n in lost)
    assert text.count("no label") == len(lost)


@pytest.mark.parametrize("form", ["CSV", "JSON", "Parquet of datasets", "WebDataset, .cls text",
                                  "tar of class folders"])  # fmt: skip
def test_a_class_of_test_images_alone_is_a_fault(images: Images, tmp_path: Path, form: str) -> None:
    only = [one for one in images if one.part == "test" or one.label != "red"]

    text = faults(FORMS[form](only, tmp_path / "data"))

    assert "red" in text
    assert "no training image" in text or "no training folder has this class" in text


@pytest.mark.parametrize("twice", [0, 1, 4, 8, 11])
def test_two_files_of_one_name_in_an_archive_are_a_fault(
    images: Images, tmp_path: Path, twice: int
) -> None:
    samples = [
        (f"{n:03}{suffix}", data)
        for n, one in enumerate(images)
        for suffix, data in ((".cls", one.label.encode()), (".png", one.data))
    ]
    samples += samples[2 * twice : 2 * twice + 2]

    text = faults(forms._tar(tmp_path / "pets.tar", samples))

    assert f"pets.tar/{twice:03}.png: the archive has two files of this name" in text


@pytest.mark.parametrize("cut", [1500, 5000, 9000, 20000, 40000])
def test_a_damaged_archive_is_refused(images: Images, tmp_path: Path, cut: int) -> None:
    source = FORMS["tar of class folders"](images, tmp_path / "data")
    source.write_bytes(source.read_bytes()[:-cut])

    assert "is damaged or cut short" in faults(source)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.jsonl", '{"path": "1.png"\n', "is not JSON"),
        ("m.jsonl", "[1]\n", "is not a table: expected objects"),
        ("m.json", '[{"path": "1.png"}, 2]', "is not a table: expected objects"),
        ("m.json", '[{"file": "1.png", "label": "a"}]', "column 'path' is missing; the table has"),
        ("m.tar", "no archive", "is damaged or cut short"),
        ("m.arrow", "ARROW", "not an? Arrow file"),
        ("m.tgz", "", "is damaged or cut short"),
        ("metadata.jsonl", '{"file_name": "gone.png", "label": "a"}\n', "gone.png: no such file"),
    ],
)
def test_a_source_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(DatasetInvalid, match=reason):
        read_dataset(tmp_path / name)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_metadata_without_labels_is_no_obstacle_to_class_folders(
    images: Images, tmp_path: Path, suffix: str
) -> None:
    source = forms.folder(images, tmp_path / "data")
    rows = [{"file_name": f"train/{one.label}/{one.name}", "note": "x"} for one in images]
    forms._text_table(source / f"metadata{suffix}", rows)

    assert read_dataset(source).class_names == ("blue", "green", "red", "yellow")
    text = faults(source, columns=ColumnNames(label="species"))
    assert "column 'species' is missing; the table has file_name, note" in text


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_images_without_a_row_of_metadata_are_counted(
    images: Images, tmp_path: Path, suffix: str
) -> None:
    source = forms.metadata(suffix)(images, tmp_path / "data")
    for number in range(3):
        (source / "test" / f"more{number}.png").write_bytes(images[0].data)

    [note] = read_dataset(source).notes

    assert note.startswith("3 images without a row in ")
    assert f"test/metadata{suffix}" in note


@pytest.mark.parametrize("split", ["practice", "holdout", "", "0", "train2"])
@pytest.mark.parametrize("form", ["imagefolder, one metadata.jsonl", "CSV", "Parquet with bytes"])
def test_a_split_that_is_none_is_named(
    images: Images, tmp_path: Path, form: str, split: str
) -> None:
    source = FORMS[form](images, tmp_path / "data")
    if form.startswith("Parquet"):
        table = pq.read_table(source)
        column = pa.array([split] * table.num_rows)
        pq.write_table(table.drop_columns("split").append_column("split", column), source)
    elif source.is_dir():
        rows = map(json.loads, (source / "metadata.jsonl").read_text().splitlines())
        changed = [row | {"split": split} for row in rows]
        forms._text_table(source / "metadata.jsonl", changed)
    else:
        text = source.read_text()
        for part in ("train", "test"):
            text = text.replace(f",{part}\n", f",{split}\n")
        source.write_text(text)

    assert f"split {split!r}; expected train, val or test" in faults(source)


@pytest.mark.parametrize("part", ["train", "validation", "test", "dev", "val"])
def test_the_file_of_one_part_is_a_dataset_of_its_own(
    images: Images, tmp_path: Path, part: str
) -> None:
    train = [one for one in images if one.part == "train"]
    source = FORMS["Parquet of datasets"](train, tmp_path / "data")
    files = sorted((source / "data").iterdir())
    for file in files:
        file.rename(file.with_name(file.name.replace("train", part)))

    assert len(read_dataset(source).train) == len(train)
    assert len(read_dataset(source / "data" / f"{part}-*.parquet").train) == len(train)


def test_parts_without_training_images_are_refused(images: Images, tmp_path: Path) -> None:
    source = FORMS["Parquet of datasets"](images, tmp_path / "data")
    first, second = sorted((source / "data").glob("train-*"))
    first.rename(first.with_name("validation.parquet"))
    second.unlink()

    assert "There are test and val files, but none of train" in faults(source)


@pytest.mark.parametrize(
    "form", ["CSV", "JSON lines", "Parquet with paths", "Parquet with bytes", "WebDataset, .json"]
)
def test_several_labels_per_image_are_read_from_every_form(
    images: Images, tmp_path: Path, form: str
) -> None:
    two = [
        replace(one, label=f"{one.label};{'cold' if one.label == 'blue' else 'warm'}")
        for one in images
    ]
    source = FORMS[form](two, tmp_path / "data")

    dataset = read_multi_label(source)

    assert dataset.class_names == ("blue", "cold", "green", "red", "warm", "yellow")
    assert dataset.parts["train"].labels.sum() == 24
    assert "learn them with train --multi-label" in faults(source)


@pytest.mark.parametrize("form", ["CSV", "Parquet with bytes", "Arrow", "WebDataset, .json",
                                  "tar of class folders"])  # fmt: skip
def test_the_command_names_unreadable_images_in_one_error(
    run: Run, images: Images, tmp_path: Path, form: str
) -> None:
    bad = [replace(one, data=b"") if n == 1 else one for n, one in enumerate(images)]
    source = FORMS[form](bad, tmp_path / "data")

    failed = run("train", source, "--method", "zero-shot", "-o", tmp_path / "p.safetensors")

    assert failed.exit_code == 2
    assert f"{tmp_path / 'data'}/{NAMES[form]}: " in failed.stderr
    assert not (tmp_path / "p.safetensors").exists()
