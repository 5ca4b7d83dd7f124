"""Images and scores in an object store, against a real S3 server on this machine."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from prompt_serve.image_folders import Ignored
from prompt_serve.sources.plan import shards_of
from tests.cli.conftest import Run, run
from tests.offline.prompts import zero_shot
from tests.sources.stores import running_s3
from tests.sources.test_plan import IMAGES, NUMBERS, content, vectors_of

__all__ = ["run"]  # a fixture


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A bucket of images, an archive and tables; the environment names the server."""
    with running_s3() as files:
        files.mkdir("photos")
        files.mkdir("results")
        _fill(files)
        yield files


def _fill(files: Any) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for index, data in enumerate(IMAGES):
            files.pipe_file(f"photos/2025/{index % 2}/{index}.png", data)
            info = tarfile.TarInfo(f"{index}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    files.pipe_file("photos/2025/notes.txt", b"no image")
    files.pipe_file("photos/2025/.hidden/1.png", IMAGES[0])
    files.pipe_file("photos/tars/0000.tar", archive.getvalue())
    for name, table in {
        "images": pa.table({"image": pa.array(IMAGES, pa.binary())}),
        "vectors": pa.table({"embedding": pa.array(list(NUMBERS), pa.list_(pa.float32()))}),
    }.items():
        file = io.BytesIO()
        pq.write_table(table, file, row_group_size=3)
        files.pipe_file(f"photos/tables/{name}.parquet", file.getvalue())


@pytest.mark.parametrize(
    "source",
    [
        "s3://photos/2025",
        "s3://photos/2025/",
        "s3://photos/2025/*/*.png",
        "s3://photos/tars/0000.tar",
        "s3://photos/tars",
        "s3://photos/tars/{0000..0003}.tar",
        "s3://photos/tables/images.parquet",
        "s3://photos/tables/i*.parquet",
    ],
)
def test_every_image_of_a_bucket_is_read_once(store: Any, source: str) -> None:
    shards = shards_of([source], Ignored(), rows_per_shard=2)

    found = content(shards)

    assert sorted(data for _, data in found) == sorted(IMAGES)
    assert all(name.startswith("s3://photos/") for name, _ in found)


def test_embeddings_of_a_bucket_are_read(store: Any) -> None:
    _, found = vectors_of(shards_of(["s3://photos/tables/vectors.parquet"], Ignored()))

    assert found.tolist() == NUMBERS.tolist()


def test_a_bucket_is_scored_into_another_and_resumed(store: Any, run: Run, tmp_path: Path) -> None:
    pets = zero_shot(tmp_path / "pets.safetensors", "cat", "dog", "fish")
    store.pipe_file("photos/2025/1/bad.png", b"no image")
    words = ["s3://photos/2025", "--prompt", pets, "--shard-size", 3]
    out = "s3://results/pets"

    done = run("score", *words, "--out", out, "--save-embeddings", "s3://results/embeddings")
    assert done.exit_code == 0, done.output
    found = pyarrow.dataset.dataset("results/pets", format="parquet", filesystem=store).to_table()
    parts = store.ls("results/pets")
    store.rm_file(parts[1])
    again = run("score", *words, "--out", out, "--resume")
    by_embeddings = run(
        "score", "s3://results/embeddings", "--prompt", pets, "--out", tmp_path / "scores"
    )

    assert again.exit_code == by_embeddings.exit_code == 0, again.output
    store.invalidate_cache()
    assert sorted(store.ls("results/pets")) == sorted(parts)
    resumed = pyarrow.dataset.dataset("results/pets", format="parquet", filesystem=store).to_table()
    assert resumed.to_pylist() == found.to_pylist()
    assert found.num_rows == len(IMAGES) + 1
    assert [row["source"] for row in found.to_pylist() if row["error"]] == [
        "s3://photos/2025/1/bad.png"
    ]
    local = pyarrow.dataset.dataset(tmp_path / "scores", format="parquet").to_table()
    assert local["class_name"].to_pylist() == found["class_name"].to_pylist()
