"""Tables as spreadsheets and other programs write them: read alike, or one clear line."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from prompt_serve.errors import DatasetInvalid
from prompt_serve.training.data.loading import read_dataset
from tests.drawings import draw_image

ROWS = [("im/1.png", "café"), ("im/2.png", "red, dark"), ("im/3.png", "🌹")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        draw_image(tmp_path / "im" / f"{number}.png", (9, 9, 9), number)
    return tmp_path


def labels(path: Path) -> dict[str, str]:
    """Return class names by file."""
    split = read_dataset(path)
    return {item.path.name: split.class_names[item.label] for item in split.train.items}


def text_of(delimiter: str = ",", header: tuple[str, str] = ("path", "label")) -> str:
    rows = [header, *ROWS]
    return "".join(delimiter.join(f'"{value}"' for value in row) + "\r\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("comma.csv", text_of().encode()),
        ("semicolon.csv", text_of(";").encode()),
        ("tab.csv", text_of("\t").encode()),
        ("tab.tsv", text_of("\t").encode()),
        ("comma.tsv", text_of(",").encode()),
        ("bar.csv", text_of("|").encode()),
        ("excel.csv", ("sep=;\r\n" + text_of(";")).encode("utf-8-sig")),
        ("bom.csv", text_of().encode("utf-8-sig")),
        ("utf-16.csv", text_of("\t").encode("utf-16")),
        ("upper.CSV", text_of(header=("PATH", "Label")).encode()),
        ("spaces.csv", text_of(header=(" Path ", "label ")).encode()),
        ("windows.csv", text_of().replace("im/", "im\\").encode()),
        ("cr.csv", text_of().replace("\r\n", "\r").encode()),
        ("first.csv", ("\r\n\r\n" + text_of()).encode()),
        ("padded.csv", text_of(", ").encode()),
        ("blank.csv", text_of().replace("\r\n", "\r\n\r\n,,\r\n").encode()),
    ],
)
def test_a_table_is_read_whoever_wrote_it(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)

    assert labels(folder / name) == {Path(file).name: label for file, label in ROWS}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["1.0", "2.0", "1.0"], ["1", "2", "1"]),
        (["0.00", "-1.0", "10.0"], ["0", "-1", "10"]),
        (["1.0", "2.5", "1.0"], ["1.0", "2.5", "1.0"]),
        (["1.0", "v2.0", "1.0"], ["1.0", "v2.0", "1.0"]),
        (["01", "02", "03"], ["01", "02", "03"]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_whole_numbers_are_labels_without_a_fraction(
    folder: Path, suffix: str, written: list[str], read: list[str]
) -> None:
    path = folder / f"m{suffix}"
    files = [file for file, _ in ROWS]
    if suffix == ".csv":
        lines = [f"{file},{label}\n" for file, label in zip(files, written, strict=True)]
        path.write_text("path,label\n" + "".join(lines))
    else:
        parquet.write_table(pa.table({"path": files, "label": written}), path)

    assert list(labels(path).values()) == read


def test_numbers_of_a_parquet_table_are_labels_and_a_missing_one_is_a_fault(folder: Path) -> None:
    files = [file for file, _ in ROWS]
    parquet.write_table(pa.table({"Path": files, "LABEL": [1.0, 2.0, 1.0]}), folder / "a.parquet")
    missing = pa.table({"path": files, "label": [1.0, float("nan"), 2.0]})
    parquet.write_table(missing, folder / "b.parquet")

    assert list(labels(folder / "a.parquet").values()) == ["1", "2", "1"]
    with pytest.raises(DatasetInvalid, match="row 2: label is empty"):
        read_dataset(folder / "b.parquet")


@pytest.mark.parametrize(
    "note",
    [
        "two\nlines",
        "two\r\nlines",
        "with\x85other\u2028separators\x0b",
        "a,comma;and\ta tab",
        'and ""quotes""',
        "long" * 100_000,
    ],
)
def test_a_quoted_field_may_hold_anything(folder: Path, note: str) -> None:
    lines = [f'{file},"{note}","{label}"\r\n' for file, label in ROWS]
    (folder / "m.csv").write_bytes(("path,note,label\r\n" + "".join(lines)).encode())

    assert list(labels(folder / "m.csv").values()) == [label for _, label in ROWS]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp850", "mac-roman", "iso8859-15"])
def test_labels_that_are_not_utf_8_are_one_clear_line(folder: Path, encoding: str) -> None:
    text = "path,label\nim/1.png,red\nim/2.png,café\n"
    (folder / "m.csv").write_bytes(text.encode(encoding))

    with pytest.raises(DatasetInvalid) as caught:
        read_dataset(folder / "m.csv")

    assert "m.csv is not UTF-8 text (line 3)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\xff.png", b"a\x80b.png", b"\xe9\xe8", b"\xc3"])
def test_a_file_name_that_is_not_utf_8_is_found_by_its_bytes(folder: Path, name: bytes) -> None:
    (folder / "im/1.png").rename(folder / os.fsdecode(name))
    (folder / "m.csv").write_bytes(b"path,label\n" + name + b",a\nim/2.png,b\n")

    assert list(labels(folder / "m.csv")) == [os.fsdecode(name), "2.png"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label\nim/1.png,red, dark\n", "row 1 has 3 values and the header 2; put"),
        ("path,label,Label\nim/1.png,a,b\n", "2 columns are called 'label'"),
        ("file;class\nim/1.png;a\n", "column 'path' is missing; the table has file;class"),
        ("im/1.png,cat\n", "column 'path' is missing; the table has im/1.png, cat"),
        ("path,label\nim/1.png\n", "row 1: label is empty"),
        ('path,label\nim/1.png,"a\n', "there is one class only"),
    ],
)
def test_what_a_table_lacks_is_said(folder: Path, text: str, reason: str) -> None:
    (folder / "m.csv").write_text(text)

    with pytest.raises(DatasetInvalid, match=reason):
        read_dataset(folder / "m.csv")
