"""Sources become shards: whatever is named, every image once, in a stable order."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prompt_serve.errors import DatasetInvalid, PromptServeError
from prompt_serve.image_folders import Ignored
from prompt_serve.sources.files import matching, read_image_file
from prompt_serve.sources.plan import shards_of
from prompt_serve.sources.shard import Shard, holds_embeddings
from tests.service.prompts import picture

IMAGES = [picture(seed) for seed in range(7)]


def content(shards: list[Shard]) -> list[tuple[str, bytes]]:
    """Names and bytes of all images."""
    found = []
    for shard in shards:
        assert not holds_embeddings(shard)
        for item in shard.items():  # type: ignore[union-attr]  # checked above
            data = read_image_file(item.source) if item.data is None else item.data
            assert isinstance(data, bytes), data
            found.append((item.source, data))
    return found


def vectors_of(shards: list[Shard], rows: int = 3) -> tuple[list[str], np.ndarray]:
    names: list[str] = []
    found = []
    for shard in shards:
        assert holds_embeddings(shard)
        for batch in shard.batches(rows):  # type: ignore[union-attr]
            names += batch.sources
            found.append(batch.vectors)
    return names, np.concatenate(found)


def folder(path: Path) -> Path:
    (path / "photos" / "deep").mkdir(parents=True)
    for index, data in enumerate(IMAGES):
        place = path / "photos" / ("deep" if index % 2 else "") / f"{index}.png"
        place.write_bytes(data)
    (path / "photos" / "notes.txt").write_text("no image")
    (path / "photos" / ".hidden.png").write_bytes(IMAGES[0])
    return path / "photos"


def text_list(path: Path) -> Path:
    photos = folder(path)
    lines = [str(file) for file in sorted(photos.rglob("[0-9].png"))]
    (path / "list.txt").write_text("\n".join(lines) + "\n")
    return path / "list.txt"


def tar(path: Path, mode: str = "w") -> Path:
    name = path / ("images.tar" if mode == "w" else "images.tar.gz")
    with tarfile.open(name, mode) as archive:  # type: ignore[call-overload]  # a mode
        for index, data in enumerate(IMAGES):
            for member, body in ((f"{index:04}.png", data), (f"{index:04}.json", b"{}")):
                info = tarfile.TarInfo(member)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
    return name


def parquet_bytes(path: Path) -> Path:
    names = [f"{index}.png" for index in range(len(IMAGES))]
    table = pa.table({"file_name": names, "image": pa.array(IMAGES, pa.binary())})
    pq.write_table(table, path / "images.parquet", row_group_size=3)
    return path / "images.parquet"


def parquet_of_datasets(path: Path) -> Path:
    """As Hugging Face datasets writes images."""
    rows = [{"bytes": data, "path": f"{index}.png"} for index, data in enumerate(IMAGES)]
    table = pa.table({"label": [0] * len(IMAGES), "image": rows})
    pq.write_table(table, path / "train.parquet", row_group_size=2)
    return path / "train.parquet"


def parquet_paths(path: Path) -> Path:
    """Paths relative to the table."""
    for index, data in enumerate(IMAGES):
        (path / f"{index}.png").write_bytes(data)
    table = pa.table({"path": [f"{index}.png" for index in range(len(IMAGES))]})
    pq.write_table(table, path / "paths.parquet")
    return path / "paths.parquet"


def arrow_bytes(path: Path) -> Path:
    table = pa.table({"path": ["x"] * len(IMAGES), "jpg": pa.array(IMAGES, pa.binary())})
    with (
        pa.OSFile(str(path / "images.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        for batch in table.to_batches(max_chunksize=4):
            writer.write_batch(batch)
    return path / "images.arrow"


FORMS: dict[str, Callable[[Path], Path]] = {
    "folder": folder,
    "list": text_list,
    "tar": tar,
    "tar.gz": lambda path: tar(path, "w:gz"),
    "Parquet with bytes": parquet_bytes,
    "Parquet of datasets": parquet_of_datasets,
    "Parquet with paths": parquet_paths,
    "Arrow with bytes": arrow_bytes,
}


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("form", list(FORMS))
def test_every_image_of_a_source_is_read_once(tmp_path: Path, form: str, size: int | None) -> None:
    source = FORMS[form](tmp_path)

    shards = shards_of([str(source)], Ignored(), rows_per_shard=size)

    found = content(shards)
    assert sorted(data for _, data in found) == sorted(IMAGES)
    if form != "Arrow with bytes":  # in which all names are equal
        assert len({name for name, _ in found}) == len(IMAGES)
    if form not in ("folder", "list"):
        assert [data for _, data in found] == IMAGES
    again = shards_of([str(source)], Ignored(), rows_per_shard=size)
    assert [shard.name for shard in again] == [shard.name for shard in shards]
    sizes = [shard.size for shard in shards]
    assert None in sizes or sum(filter(None, sizes)) == len(IMAGES)


def test_file_urls_have_the_images_of_their_paths(tmp_path: Path) -> None:
    photos, archive = folder(tmp_path), tar(tmp_path)

    by_url = shards_of([f"file://{photos}", f"file://{archive}"], Ignored())
    by_path = shards_of([str(photos), str(archive)], Ignored())

    assert [data for _, data in content(by_url)] == [data for _, data in content(by_path)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.png", ["0", "2", "4", "6"]),
        ("photos/deep/*.png", ["1", "3", "5"]),
        ("photos/**/[12].png", ["2", "1"]),
        ("photos/{0..4}.png", ["0", "2", "4"]),
        ("photos/deep/?.png", ["1", "3", "5"]),
    ],
)
def test_patterns_name_files(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    folder(tmp_path)

    found = matching(str(tmp_path / pattern))

    assert sorted(Path(path).stem for path in found) == sorted(expected)


def test_numbered_shards_are_counted_with_their_zeros(tmp_path: Path) -> None:
    for number in range(8, 12):
        (tmp_path / f"shard-{number:04}.tar").touch()

    found = matching(str(tmp_path / "shard-{0008..0011}.tar"))

    assert [Path(path).name for path in found] == [f"shard-{n:04}.tar" for n in range(8, 12)]


NUMBERS = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)


def npy(path: Path, dtype: str) -> Path:
    np.save(path / "vectors.npy", NUMBERS.astype(dtype))
    return path / "vectors.npy"


def parquet_vectors(path: Path, kind: str) -> Path:
    of = {
        "list": pa.list_(pa.float32()),
        "large list": pa.large_list(pa.float32()),
        "fixed": pa.list_(pa.float32(), 4),
        "double": pa.list_(pa.float64()),
        "half": pa.list_(pa.float16(), 4),
    }[kind]
    column = pa.array(list(NUMBERS.astype(np.float16 if kind == "half" else np.float64)), of)
    pq.write_table(pa.table({"embedding": column}), path / "v.parquet", row_group_size=4)
    return path / "v.parquet"


@pytest.mark.parametrize("size", [1, 3, 10, 99])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", "=f4"])
def test_arrays_are_read_in_rows(tmp_path: Path, dtype: str, size: int) -> None:
    path = npy(tmp_path, dtype)

    names, found = vectors_of(shards_of([str(path)], Ignored(), rows_per_shard=size))

    assert names == [f"{path}#{row}" for row in range(10)]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, NUMBERS.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("size", [None, 1, 5])
@pytest.mark.parametrize("kind", ["list", "large list", "fixed", "double", "half"])
def test_lists_of_numbers_are_embeddings(tmp_path: Path, kind: str, size: int | None) -> None:
    path = parquet_vectors(tmp_path, kind)

    names, found = vectors_of(shards_of([str(path)], Ignored(), rows_per_shard=size))

    assert names == [f"{path}#{row}" for row in range(10)]
    np.testing.assert_allclose(found, NUMBERS, atol=1e-3 if kind == "half" else 0)


def test_rows_without_an_image_or_embedding_are_errors(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([IMAGES[0], None], pa.binary())}), tmp_path / "i.pq")
    column = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": column}), tmp_path / "e.parquet")

    [images] = shards_of([str(tmp_path / "i.pq")], Ignored())
    [embeddings] = shards_of([str(tmp_path / "e.parquet")], Ignored())

    assert not holds_embeddings(images)
    data = [item.data for item in images.items()]  # type: ignore[union-attr]
    assert data[0] == IMAGES[0]
    assert isinstance(data[1], PromptServeError)
    [batch] = embeddings.batches(10)  # type: ignore[union-attr]
    assert list(batch.errors) == [1]
    assert batch.vectors[[0, 2]].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def _wrong(path: Path) -> dict[str, tuple[str, str]]:
    (path / "empty").mkdir()
    np.save(path / "one.npy", np.zeros(3, np.float32))
    np.save(path / "whole.npy", np.zeros((3, 2), np.int64))
    np.save(path / "columns.npy", np.asfortranarray(np.zeros((3, 2), np.float32)))
    (path / "text.npy").write_bytes(b"no array")
    (path / "text.parquet").write_bytes(b"no table")
    (path / "text.arrow").write_bytes(b"no table")
    pq.write_table(pa.table({"label": [1, 2]}), path / "labels.parquet")
    return {
        "missing": ("missing.png", "No such file or folder"),
        "an empty folder": ("empty", "No images in"),
        "no match": ("*.gif", "No such file or folder"),
        "one dimension": ("one.npy", r"float32 \(3,\); expected"),
        "whole numbers": ("whole.npy", "int64"),
        "Fortran order": ("columns.npy", "Fortran order"),
        "not an array": ("text.npy", "not a NumPy file"),
        "not Parquet": ("text.parquet", "not a Parquet file"),
        "not Arrow": ("text.arrow", "not an Arrow file"),
        "no images": ("labels.parquet", "no column of images or embeddings.*--column"),
    }


@pytest.mark.parametrize(
    "fault",
    ["missing", "an empty folder", "no match", "one dimension", "whole numbers", "Fortran order",
     "not an array", "not Parquet", "not Arrow", "no images"],
)  # fmt: skip
def test_a_source_that_cannot_be_read_says_why(tmp_path: Path, fault: str) -> None:
    name, message = _wrong(tmp_path)[fault]

    with pytest.raises(DatasetInvalid, match=message):
        shards_of([str(tmp_path / name)], Ignored())


def test_images_and_embeddings_are_not_mixed(tmp_path: Path) -> None:
    photos, vectors = folder(tmp_path), npy(tmp_path, "<f4")

    with pytest.raises(DatasetInvalid, match="score them apart"):
        shards_of([str(photos), str(vectors)], Ignored())


@pytest.mark.parametrize("cut", [1, 600, 1024, 2000])
def test_a_damaged_archive_keeps_the_images_before_the_damage(tmp_path: Path, cut: int) -> None:
    archive = tar(tmp_path)
    archive.write_bytes(archive.read_bytes()[:-cut] if cut > 1 else b"no archive")

    [shard] = shards_of([str(archive)], Ignored())

    items = list(shard.items())  # type: ignore[union-attr]
    assert len(items) <= len(IMAGES) + 1
    good = [item.data for item in items if isinstance(item.data, bytes)]
    assert good == IMAGES[: len(good)]
    assert len(good) < len(items) or cut > 1


def test_what_is_ignored_in_folders_is_counted(tmp_path: Path) -> None:
    photos, ignored = folder(tmp_path), Ignored()

    shards_of([str(photos)], ignored)

    assert str(ignored) == "2 files ignored: 1 .txt, 1 hidden"


def test_a_column_can_be_named(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(list(NUMBERS)), "embedding": pa.array(list(2 * NUMBERS))})
    pq.write_table(table, tmp_path / "two.parquet")

    _, found = vectors_of(shards_of([str(tmp_path / "two.parquet")], Ignored(), column="a"))

    np.testing.assert_array_equal(found, NUMBERS)
    with pytest.raises(DatasetInvalid, match="no column 'b'; it has a, embedding"):
        shards_of([str(tmp_path / "two.parquet")], Ignored(), column="b")
