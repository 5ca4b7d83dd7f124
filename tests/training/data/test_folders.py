"""Datasets in folders as people have them: names of parts, wrappers, links, spellings."""

import unicodedata
from pathlib import Path

import pytest

from prompt_serve.errors import DatasetInvalid
from prompt_serve.training.data.dataset import Split, part_of
from prompt_serve.training.data.loading import read_dataset
from tests.drawings import COLORS, draw_dataset, draw_image


def counts(split: Split) -> dict[str, int]:
    return {name: len(part) for name, part in split.parts.items()}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("training", "validation", "testing"),
        ("training_set", "validation_set", "test_set"),
        ("TRAIN", "dev", "TEST"),
        ("train-images", "val images", "test_data"),
        ("trainset", "valset", "testset"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "dataset"])
def test_parts_are_found_under_their_usual_names(
    tmp_path: Path, train: str, val: str, test: str, wrapper: str
) -> None:
    draw_dataset(tmp_path / wrapper, **{train: 3, val: 1, test: 2})
    split = read_dataset(tmp_path)
    assert counts(split) == {"train": 12, "val": 4, "test": 8}
    assert split.class_names == tuple(sorted(COLORS))
    assert split.notes == ()


@pytest.mark.parametrize("name", ["trainer", "set", "contest", "data", "my train", "test1", ""])
def test_other_names_are_no_parts(name: str) -> None:
    assert part_of(name) is None


def test_parts_may_be_nested_in_folders_named_alike(tmp_path: Path) -> None:
    draw_dataset(tmp_path, **{"training_set/training_set": 2, "test_set/test_set": 1})
    (tmp_path / "test_set" / ".DS_Store").write_bytes(b"")
    split = read_dataset(tmp_path)
    assert counts(split) == {"train": 8, "test": 4}
    assert split.notes == ("1 file ignored: 1 hidden.",)


@pytest.mark.parametrize("wrapper", ["flowers", "images", "Dataset 1", "train", "data"])
def test_class_folders_may_lie_in_one_more_folder(tmp_path: Path, wrapper: str) -> None:
    draw_dataset(tmp_path / wrapper, all=2)
    (tmp_path / "__MACOSX" / wrapper).mkdir(parents=True)
    split = read_dataset(tmp_path)
    assert split.class_names == tuple(sorted(COLORS))
    assert split.notes == ("1 folder ignored: 1 hidden.",)


def test_two_folders_of_one_part_are_refused(tmp_path: Path) -> None:
    draw_dataset(tmp_path, train=1, val=1, validation=1)
    with pytest.raises(DatasetInvalid, match="val and validation are all folders of val images"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("names", [("test", "val"), ("Testing", "dev"), ("test_set", "valid")])
def test_parts_without_training_images_are_no_classes(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    draw_dataset(tmp_path, **dict.fromkeys(names, 1))
    with pytest.raises(DatasetInvalid, match="but no folder of train images"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path / names[0]).train) == 4


@pytest.mark.parametrize(
    ("left_out", "note"),
    [
        ("photo.png", "1 file ignored: 1 outside class folders."),
        ("train/loose.png", "1 file ignored: 1 outside class folders."),
        ("extra/red/1.png", "1 folder ignored: 1 beside train, val and test."),
        ("train/red/notes.txt", "1 file ignored: 1 .txt."),
        ("train/.ipynb_checkpoints/1.png", "1 folder ignored: 1 hidden."),
        ("test/@eaDir/red/1.png", "1 folder ignored: 1 hidden."),
        ("test/red/._1.png", "1 file ignored: 1 hidden."),
        ("readme.md", "1 file ignored: 1 .md."),
    ],
)
def test_everything_left_out_is_noted(tmp_path: Path, left_out: str, note: str) -> None:
    draw_dataset(tmp_path, train=2, test=1)
    draw_image(tmp_path / "x.png", (1, 2, 3), 0)
    (tmp_path / left_out).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "x.png").rename(tmp_path / left_out)
    split = read_dataset(tmp_path)
    assert counts(split) == {"train": 8, "test": 4}
    assert split.notes == (note,)


def test_an_error_tells_what_was_left_out(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.raw").write_bytes(b"")
    with pytest.raises(DatasetInvalid, match=r"2 files ignored: 2 \.raw"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("name", ["café", "Übergröße", "niño", "Ångström", "가방", "ą̈"])
def test_a_class_in_both_unicode_spellings_is_one(tmp_path: Path, name: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    assert composed != decomposed
    for number, (part, spelling) in enumerate(
        (("train", composed), ("train", decomposed), ("test", decomposed))
    ):
        draw_image(tmp_path / part / spelling / f"{number}.png", (9, 99, 200), number)
        draw_image(tmp_path / part / "other" / f"{number}.png", (200, 99, 9), number)
    split = read_dataset(tmp_path, rename={decomposed: "new name"})
    assert set(split.class_names) == {"new name", "other"}
    assert read_dataset(tmp_path).class_names == tuple(sorted((composed, "other")))
    assert counts(split) == {"train": 4, "test": 2}


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/scarlet", "train/red"),  # a class twice
        ("train/red/all", "."),  # a loop
        ("train/red/up", "train"),
        ("train/blue/other", "train/red"),
        ("test/0", "train/red"),  # training images as test images
    ],
)
def test_links_lead_to_no_folder_twice(tmp_path: Path, link: str, target: str) -> None:
    root = draw_dataset(tmp_path, train=2, test=1)
    (root / link).symlink_to(root / target)
    split = read_dataset(root)
    assert split.class_names == tuple(sorted(COLORS))
    assert counts(split) == {"train": 8, "test": 4}
    assert split.notes == ("1 folder ignored: 1 visited before.",)


@pytest.mark.parametrize("linked", ["red", "", "red/more"])
def test_links_to_other_places_are_followed(tmp_path: Path, linked: str) -> None:
    elsewhere = draw_dataset(tmp_path / "elsewhere", all=2)
    root = draw_dataset(tmp_path / "set", train=2)
    place = root / "test" / linked
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(elsewhere / linked.partition("/")[0])
    split = read_dataset(root)
    assert counts(split)["test"] == (2 if linked else 8)
    assert split.notes == ()
