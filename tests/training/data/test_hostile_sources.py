"""Tables and archives of strangers to learn from: named errors, and no memory without end."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prompt_serve.errors import DatasetInvalid
from prompt_serve.training.data.loading import check_images, read_dataset
from prompt_serve.training.data.tables import _LONGEST_CELL, _MAX_TEXT_BYTES
from tests.cli.conftest import caches

__all__ = ["caches"]  # a fixture
pytestmark = pytest.mark.usefixtures("caches")


def picture(seed: int = 1) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (seed, 2, 3)).save(file, "PNG")
    return file.getvalue()


def refused(source: Path) -> str:
    with pytest.raises(DatasetInvalid) as caught:
        read_dataset(source, repairs=[check_images()])
    return str(caught.value)


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".ndjson"])
def test_a_text_table_beyond_the_limit_is_not_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    with path.open("wb") as file:
        file.write(b'[{"path": "a.png"')  # a list of objects is a table
        file.truncate(_MAX_TEXT_BYTES + 1)

    assert f"{path} has 536,870,913 bytes" in refused(path)


@pytest.mark.parametrize("place", ["header", "path", "label", "quoted", "last"])
def test_a_cell_beyond_the_limit_is_an_error(tmp_path: Path, place: str) -> None:
    long = "x" * (_LONGEST_CELL + 1)
    lines = {
        "header": f"path,label,{long}\na.png,cat,1\n",
        "path": f"path,label\n{long},cat\n",
        "label": f"path,label\na.png,{long}\n",
        "quoted": f'path,label\na.png,"cat\n{long}\n"\n',
        "last": f"path,label\na.png,cat\nb.png,{long}",
    }
    path = tmp_path / "t.csv"
    path.write_text(lines[place])

    assert f"{path} is not a CSV file: field larger than field limit" in refused(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\r\r"])
def test_lines_end_as_people_end_them(tmp_path: Path, end: str) -> None:
    rows = ["path,label"]
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
        rows.append(f'{n}.png,"class\t{n % 2}"')
    path = tmp_path / "t.csv"
    path.write_bytes(end.join(rows).encode())

    split = read_dataset(path)

    assert split.class_names == ("class\t0", "class\t1")
    assert len(split.train) == 4


@pytest.mark.parametrize(
    "name", ["a\0.png", "\x1b[2J.png", "../../../etc/passwd", "/dev/zero", "/"]
)
def test_paths_that_are_no_images_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "good.png").write_bytes(picture())
    path = tmp_path / "t.jsonl"
    rows = [{"path": "good.png", "label": "a"}, {"path": name, "label": "b"}]
    path.write_text("\n".join(map(json.dumps, rows)))

    assert Path(name).name in refused(path)


@pytest.mark.parametrize("label", ["9" * 5000, "9" * 10, "٣", "0", "-1", "1e5"])
def test_labels_that_look_like_numbers_are_labels(tmp_path: Path, label: str) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    files = {}
    for n in range(4):
        files[f"{n}.png"] = picture(n)
        files[f"{n}.cls"] = (label if n % 2 else "1").encode()
    if len(label) > 500:
        assert "at most 500 are accepted" in refused(archive(tmp_path / "t.tar", files))
        return

    split = read_dataset(archive(tmp_path / "t.tar", files))

    named = {"0": "cat", "٣": "٣"}.get(label, label)
    assert set(split.class_names) == {"dog", named}


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_a_label_of_megabytes_is_a_fault(tmp_path: Path, kind: str) -> None:
    large = b"[" + b" " * (17 * 2**20) + b"]"
    files = {"0.png": picture(0), "0.cls": b"a", "1.png": picture(1), f"1.{kind}": large}

    text = refused(archive(tmp_path / "t.tar", files))

    assert f"t.tar/1.{kind} has 17,825,794 bytes; a label has at most 16,777,216" in text


@pytest.mark.parametrize(
    "document", ["[" * 100_000, '{"label": ' * 5000, "{}" * 9, "\0", "NaN", "9" * 9000]
)
def test_json_that_is_none_is_a_fault_of_its_sample(tmp_path: Path, document: str) -> None:
    files = {"0.png": picture(0), "0.cls": b"a", "1.png": picture(1), "1.json": document.encode()}

    assert "t.tar/1." in refused(archive(tmp_path / "t.tar", files))


@pytest.mark.parametrize(
    "member", ["../../a/1.png", "/abs/a/1.png", "a/../../b/1.png", "x/\x1b/1.png"]
)
def test_members_leave_nothing_outside_of_the_cache(tmp_path: Path, member: str) -> None:
    (tmp_path / "in").mkdir()
    files = {f"{label}/{n}.png": picture(n) for label in ("cat", "dog") for n in range(2)}
    source = archive(tmp_path / "in" / "t.tar", {member: picture(), **files})
    before = sorted(tmp_path.rglob("*"))

    split = read_dataset(source)

    assert {"cat", "dog"} <= set(split.class_names)
    outside = [path for path in tmp_path.rglob("*") if "cache" not in str(path)]
    assert [path for path in outside if path not in before] == []


@pytest.mark.parametrize("damage", ["cut", "bytes", "empty", "text", "zip"])
def test_a_damaged_parquet_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "t.parquet"
    images = [picture(n) for n in range(8)]
    pq.write_table(pa.table({"image": images, "label": ["a", "b"] * 4}), path)
    data = path.read_bytes()
    changed = {
        "cut": data[:-50],
        "bytes": data[:-40] + b"\xff" * 30 + data[-10:],
        "empty": b"",
        "text": b"path,label\n",
        "zip": b"PK\x03\x04" + bytes(100),
    }
    path.write_bytes(changed[damage])

    assert f"{path} is not a Parquet file, or is damaged" in refused(path)
