"""One labeled dataset in every form that ``train`` reads: same bytes, same order, same classes."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PARTS = {"train": "train", "val": "validation", "test": "test"}  # ours, Hugging Face's


@dataclass(frozen=True)
class Labeled:
    """An image of the dataset."""

    part: str
    label: str
    name: str
    data: bytes

    @property
    def flat(self) -> str:
        """Name of the file where one folder has all images of a part."""
        return f"{self.label}-{self.name}"


Images = list[Labeled]
Form = Callable[[Images, Path], Path]


def images_of(root: Path) -> Images:
    """Return the images of train, val and test folders, or of class folders, in their order."""
    parts = [part for part in PARTS if (root / part).is_dir()]
    folders = {part: root / part for part in parts} or {"train": root}
    return [
        Labeled(part, file.parent.name, file.name, file.read_bytes())
        for part, folder in folders.items()
        for file in sorted(folder.glob("*/*"))
    ]


def classes(images: Images) -> list[str]:
    return sorted({image.label for image in images})


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _by_part(images: Images) -> dict[str, Images]:
    return {p: own for p in PARTS if (own := [image for image in images if image.part == p])}


def _text_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def folder(images: Images, out: Path) -> Path:
    for image in images:
        _write(out / image.part / image.label / image.name, image.data)
    return out


def metadata(suffix: str) -> Form:
    """As Hugging Face's imagefolder: a folder per split, each with its metadata."""

    def form(images: Images, out: Path) -> Path:
        for part, own in _by_part(images).items():
            place = out / PARTS[part]
            for image in own:
                _write(place / image.flat, image.data)
            rows = [{"file_name": image.flat, "label": image.label} for image in own]
            _text_table(place / f"metadata{suffix}", rows)
        return out

    return form


def one_metadata(images: Images, out: Path) -> Path:
    """Metadata beside the split folders."""
    rows = []
    for image in images:
        name = f"{PARTS[image.part]}/{image.flat}"
        _write(out / name, image.data)
        rows.append({"file_name": name, "note": "x", "label": image.label})
    _text_table(out / "metadata.jsonl", rows)
    return out


def table(name: str, image_column: str = "path") -> Form:
    """A table of paths with a column of parts."""

    def form(images: Images, out: Path) -> Path:
        rows = []
        for number, image in enumerate(images):
            _write(out / "files" / f"{number:03}.png", image.data)
            path = f"files/{number:03}.png"
            rows.append({image_column: path, "label": image.label, "split": PARTS[image.part]})
        return _text_table(out / name, rows)

    return form


def _features(names: list[str]) -> dict[bytes, bytes]:
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def _packed(images: Images, names: list[str], *, struct: bool) -> pa.Table:
    """As Hugging Face datasets writes it; without names, plain bytes and texts."""
    rows = [{"bytes": image.data, "path": image.name} for image in images]
    column = pa.array(rows) if struct else pa.array([one.data for one in images], pa.binary())
    labels: pa.Array[Any] = (
        pa.array([names.index(image.label) for image in images], pa.int64())
        if names
        else pa.array([image.label for image in images])
    )
    found = pa.table({"image": column, "label": labels})
    return found.replace_schema_metadata(_features(names)) if names else found


def parquet_of_datasets(images: Images, out: Path) -> Path:
    """The layout of a data set on the hub, in two files for the training images."""
    names = classes(images)
    for part, own in _by_part(images).items():
        half = (len(own) + 1) // 2 if part == "train" else len(own)
        halves = [one for one in (own[:half], own[half:]) if one]
        for number, some in enumerate(halves):
            name = f"{PARTS[part]}-{number:05}-of-{len(halves):05}.parquet"
            (out / "data").mkdir(parents=True, exist_ok=True)
            pq.write_table(_packed(some, names, struct=True), out / "data" / name, row_group_size=3)
    _write(out / "README.md", b"---\nlicense: mit\n---\n")
    return out


def parquet_bytes(images: Images, out: Path) -> Path:
    out.mkdir(parents=True)
    found = _packed(images, [], struct=False)
    parts = pa.array([PARTS[image.part] for image in images])
    pq.write_table(found.append_column("split", parts), out / "pets.parquet", row_group_size=2)
    return out / "pets.parquet"


def arrow_dictionary(images: Images, out: Path) -> Path:
    """Arrow with labels and parts as dictionaries, as pandas writes categories."""
    out.mkdir(parents=True)
    found = pa.table(
        {
            "jpg": pa.array([image.data for image in images], pa.large_binary()),
            "Label": pa.array([image.label for image in images]).dictionary_encode(),
            "split": pa.array([image.part for image in images]).dictionary_encode(),
        }
    )
    with (
        pa.OSFile(str(out / "pets.arrow"), "wb") as file,
        pa.ipc.new_file(file, found.schema) as writer,
    ):
        for batch in found.to_batches(max_chunksize=5):
            writer.write_batch(batch)
    return out / "pets.arrow"


def saved_to_disk(images: Images, out: Path) -> Path:
    """As ``save_to_disk`` of Hugging Face datasets: streams in Arrow's format."""
    for part, own in _by_part(images).items():
        (out / PARTS[part]).mkdir(parents=True)
        found = _packed(own, classes(images), struct=True)
        with (
            pa.OSFile(str(out / PARTS[part] / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, found.schema) as writer,
        ):
            writer.write_table(found, max_chunksize=4)
        _write(out / PARTS[part] / "state.json", b"{}")
    return out


def _tar(path: Path, files: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # a mode
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def webdataset(label: str) -> Form:
    """Shards with a label file per sample: its text, its number, or JSON."""

    def form(images: Images, out: Path) -> Path:
        names = classes(images)
        for part, own in _by_part(images).items():
            for start in range(0, len(own), 5):
                files: list[tuple[str, bytes]] = []
                for number, image in enumerate(own[start : start + 5], start):
                    number_of_class = names.index(image.label)
                    beside = {
                        "text": (".cls", image.label.encode()),
                        "number": (".cls", str(number_of_class).encode()),
                        "json": (".json", json.dumps({"id": 1, "label": image.label}).encode()),
                    }[label]
                    files += [
                        (f"{number:06}.png", image.data),
                        (f"{number:06}.mask.png", b"another picture of the sample"),
                        (f"{number:06}{beside[0]}", beside[1]),
                    ]
                _tar(out / f"pets-{PARTS[part]}-{start // 5:04}.tar", files)
        if label == "number":
            (out / "classes.txt").write_text("\n".join(names) + "\n")
        return out

    return form


def tar_of_folders(images: Images, out: Path) -> Path:
    files = [(f"./pets/{i.part}/{i.label}/{i.name}", i.data) for i in images]
    return _tar(out / "pets.tar.gz", [("./pets/notes.txt", b"no image"), *files], "w:gz")


FORMS: dict[str, Form] = {
    "imagefolder, metadata.csv": metadata(".csv"),
    "imagefolder, metadata.jsonl": metadata(".jsonl"),
    "imagefolder, metadata.parquet": metadata(".parquet"),
    "imagefolder, one metadata.jsonl": one_metadata,
    "CSV": table("pets.csv"),
    "CSV, file_name": table("pets.csv", "file_name"),
    "JSON": table("pets.json"),
    "JSON lines": table("pets.jsonl", "filename"),
    "Parquet with paths": table("pets.parquet"),
    "Parquet of datasets": parquet_of_datasets,
    "Parquet with bytes": parquet_bytes,
    "Arrow": arrow_dictionary,
    "Arrow of datasets": saved_to_disk,
    "WebDataset, .cls text": webdataset("text"),
    "WebDataset, .cls number": webdataset("number"),
    "WebDataset, .json": webdataset("json"),
    "tar of class folders": tar_of_folders,
}

# One of each kind of reader; the others are for tests marked long.
_SHORT = (
    *("imagefolder, metadata.jsonl", "CSV", "Parquet of datasets", "Parquet with bytes"),
    *("WebDataset, .cls number", "tar of class folders"),
)


def short_first(names: Iterable[str]) -> list[Any]:
    """Return parameters for tests: forms that differ little from others are marked long."""
    return [
        name if name in _SHORT else pytest.param(name, marks=pytest.mark.long) for name in names
    ]


def upload(files: Any, source: Path, root: Path, bucket: str) -> str:
    """Copy a form into a bucket of an fsspec file system; return its path there."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            files.pipe_file(f"{bucket}/{path.relative_to(root).as_posix()}", path.read_bytes())
    shutil.rmtree(root)  # so that nothing is read from this machine
    relative = source.relative_to(root).as_posix()
    return bucket if relative == "." else f"{bucket}/{relative}"
